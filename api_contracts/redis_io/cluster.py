"""Tells a Redis Cluster, which is not supported: its keys are on several servers.

A script here writes a task's record and the list of open tasks, and Celery the lists of a queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import (
    AskError,
    ClusterCrossSlotError,
    ClusterDownError,
    RedisError,
    ResponseError,
)

if TYPE_CHECKING:
    from redis import Redis

CLUSTER = "this is a Redis Cluster, which is not supported: use a Redis or Valkey, or Sentinel"
_ERRORS = (AskError, ClusterCrossSlotError, ClusterDownError)  # MOVED is an AskError
#: What errors say that redis-py has no class for: raised in a script, and by SELECT.
_WORDS = ("CROSSSLOT", "CLUSTERDOWN", "cluster mode")


def is_cluster_error(error: BaseException) -> bool:
    """Whether only a Redis Cluster raises this error."""
    if isinstance(error, _ERRORS):
        return True
    return isinstance(error, ResponseError) and any(word in str(error) for word in _WORDS)


def is_cluster(redis: Redis) -> bool:
    """Whether a server says that it is one; False for one that can't be asked."""
    try:
        found: Any = redis.info("cluster")
    except RedisError as error:
        return is_cluster_error(error)
    return bool(found.get("cluster_enabled"))
