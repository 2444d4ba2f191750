"""Celery's result backend, which also waits for a Redis that is full."""

from __future__ import annotations

from celery.backends.redis import RedisBackend

from api_contracts.connection import is_away


class Backend(RedisBackend):
    """Celery would make a failure of a task whose success Redis refused to hold."""

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Whether a later try may succeed."""
        return super().exception_safe_to_retry(exc) or is_away(exc)
