"""How many workers one Redis serves: workers that compute nothing, and what they cost Redis.

Everything but engine, S3 and Celery's consumer is the real thing: a worker's own classes make its
calls. Start at `command`.
"""
