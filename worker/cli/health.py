"""What `health` and `queue` show: the workers that answer, their tasks and the queue lengths."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from api_contracts.client.queues import lists_of
from api_contracts.client.records import service_errors
from api_contracts.errors import ServiceUnavailable
from api_contracts.names import PRIORITIES
from api_contracts.redis_io.celery_app import celery_app
from api_contracts.redis_io.connection import connect
from worker.broker.remote_control import WELL

if TYPE_CHECKING:
    from worker.config.settings import Settings

#: Time in which workers may answer, in seconds.
ANSWER_TIMEOUT_S = 5.0


def host_workers(settings: Settings) -> dict[str, str | None]:
    """Return by node name why each worker of this host takes no task now; None if it takes them.

    Raises `ServiceUnavailable` when Redis does not answer.
    """
    host = socket.gethostname()
    return {
        name: answer.get("refusal", answer.get("error"))
        for name, answer in all_workers(settings).items()
        if name.partition("@")[2] == host
    }


def all_workers(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return `refusal`, `device`, `running` (task ids) of each worker of the broker, by node name.

    Raises `ServiceUnavailable` when Redis does not answer.
    """
    app = celery_app("sag-health", settings.broker_url.get_secret_value())
    try:
        replies = app.control.broadcast(WELL, reply=True, timeout=ANSWER_TIMEOUT_S)
    except (OperationalError, RedisError) as error:
        raise ServiceUnavailable(f"Redis does not answer: {error}") from error
    return {name: answer for reply in replies for name, answer in sorted(reply.items())}


def depths(settings: Settings) -> dict[str, dict[int, int]]:
    """Return how many messages wait, by model and priority; raises as `all_workers`."""
    broker = connect(settings.broker_url.get_secret_value())
    pipeline = broker.pipeline(transaction=False)
    for key in lists_of(list(settings.models)):
        pipeline.llen(key)
    with service_errors():
        lengths = iter(pipeline.execute())
    return {
        model: {each: count for each, count in zip(PRIORITIES, lengths, strict=False) if count}
        for model in settings.models
    }
