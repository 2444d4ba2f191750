"""Celery's result backend, whose ends are final."""

from __future__ import annotations

from typing import Any

from celery import states
from celery.backends.redis import RedisBackend

from api_contracts.redis_io.scripts import load


class Backend(RedisBackend):
    """Celery would write a state of before over a failure.

    A worker that was frozen on the way to tell of a step would make a task that has ended look as
    if it ran, for ever.
    """

    def _set_with_state(self, key: str, value: Any, state: str) -> Any:  # noqa: ANN401  # Celery's signature
        if state in states.READY_STATES:
            return super()._set_with_state(key, value, state)
        set_state = load(self.client, "worker.broker", "set_state")
        return self.ensure(
            lambda: set_state(result=key, meta=value, expires_s=self.expires or 0), ()
        )
