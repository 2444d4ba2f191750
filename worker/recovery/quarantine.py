"""What becomes of records and sets that can't be read: producers may write anything into them."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from redis.exceptions import NoPermissionError, ResponseError

from api_contracts.redis_io.connection import WRONG_TYPE, is_unavailable
from worker import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

logger = logging.getLogger(__name__)


@contextmanager
def quarantine(redis: Redis, key: str, member: bytes) -> Iterator[None]:
    """Remove a member from its sorted set when its record can't be read; log and count it.

    So that it stops no other task.
    """
    try:
        yield
    except (ResponseError, ValueError, RecursionError) as error:
        if is_unavailable(error) or isinstance(error, NoPermissionError):
            raise
        task_id = member.decode(errors="replace")
        logger.error("task %r: unreadable record, removed from %s: %s", task_id, key, error)  # noqa: TRY400  # not our bug
        metrics.REJECTED.labels("odd_record").inc()
        redis.zrem(key, member)


@contextmanager
def known_type(redis: Redis, key: str) -> Iterator[None]:
    """Delete a sorted set that is a key of another type: no task is claimed until then."""
    try:
        yield
    except ResponseError as error:
        if WRONG_TYPE not in str(error):
            raise
        logger.error("%s is not a sorted set, deleting it: %s", key, error)  # noqa: TRY400  # not our bug
        redis.delete(key)
