"""Pushes of terminal events to Celery queues and webhooks. Start at `pusher`.

Owns retries, signatures and the address filter. Must not know `execution`: it reads finished tasks
from the record.
"""
