"""Where kombu notes that a queue belongs to an exchange, and a Redis that refuses writes."""

from __future__ import annotations

import logging
from typing import Any

from redis.exceptions import ReadOnlyError

from api_contracts.redis_io import transport

logger = logging.getLogger(__name__)


class BindingChannel(transport.Channel):
    """A channel that may be opened while Redis is a replica, as after a failover.

    Binding a queue writes what an earlier connection has written. kombu would let the refusal end
    the worker.
    """

    def _queue_bind(self, *args: Any) -> None:  # noqa: ANN401  # kombu's signature
        try:
            super()._queue_bind(*args)
        except ReadOnlyError as error:
            logger.warning("queue not bound again: Redis refuses: %s", error)
