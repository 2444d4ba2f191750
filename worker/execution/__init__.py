"""One delivery of a task, from the Celery message to its outcome. Start at `executor`.

Owns the order of claim, denoising, upload and final event. Knows no Redis key and no tensor.
"""
