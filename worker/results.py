"""Celery's result backend, which also waits for a Redis that is full, and whose ends are final."""

from __future__ import annotations

from typing import Any

from celery import states
from celery.backends.redis import RedisBackend

from api_contracts.connection import is_away
from api_contracts.scripts import load


class Backend(RedisBackend):
    """Celery would make a failure of a task whose success Redis refused to hold.

    It would also write a state of before over a failure: a worker that was frozen on the way to
    tell of a step would make a task that has ended look as if it ran, for ever.
    """

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Whether a later try may succeed."""
        return super().exception_safe_to_retry(exc) or is_away(exc)

    def _set_with_state(self, key: str, value: Any, state: str) -> Any:  # noqa: ANN401  # Celery's signature
        if state in states.READY_STATES:
            return super()._set_with_state(key, value, state)
        tell = load(self.client, "worker", "tell")
        return self.ensure(lambda: tell(keys=[key], args=[value, self.expires or 0]), ())
