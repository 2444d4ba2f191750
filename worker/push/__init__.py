"""Pushes of final events to Celery queues and webhooks. Start at `pusher`.

Owns retries and the address filter. Knows no execution: it reads finished tasks from the record.
"""
