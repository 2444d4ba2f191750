"""Retries Redis calls that must not be lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import stamina

from api_contracts.redis_io.connection import is_unavailable
from worker import metrics

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: How long a call is retried while Redis is unavailable, in seconds.
PATIENCE_S = 300.0


def retry_redis(call: Callable[[], T], patience_s: float | None = None) -> T:
    """The result of `call`, retried while Redis is unavailable; it must be safe to repeat.

    `patience_s` is `PATIENCE_S` unless given; with 0 there is one try.
    """
    timeout = PATIENCE_S if patience_s is None else patience_s
    if timeout <= 0:
        return call()
    for attempt in stamina.retry_context(on=is_unavailable, attempts=None, timeout=timeout):
        if attempt.num > 1:
            metrics.REDIS_RETRIES.inc()
        with attempt:
            return call()
    raise AssertionError  # the context ends by a return or by the last error
