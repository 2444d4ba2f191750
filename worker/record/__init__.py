"""A task's record in Redis as the worker writes it. Start at `task_record`.

Owns claims, events, checkpoints and Celery's states. Knows no engine and no broker message.
"""
