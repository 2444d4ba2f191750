"""What `health` and `queue` show: the workers that answer, their tasks and the queue lengths."""

from __future__ import annotations

import re
import socket
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from api_contracts.client.queues import lists_of
from api_contracts.client.records import service_errors
from api_contracts.errors import ServiceUnavailable
from api_contracts.names import PRIORITIES
from api_contracts.redis_io.celery_app import celery_app
from api_contracts.redis_io.connection import connect, connect_impatiently
from worker.broker.remote_control import WELL
from worker.recovery.timing import FORGET_WORKER_S

if TYPE_CHECKING:
    from worker.config.settings import Settings

#: Time in which workers may answer, in seconds.
ANSWER_TIMEOUT_S = 5.0
#: Longest wait for an answer of the Redis of records, in seconds; it is asked twice.
RECORDS_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class WorkerHealth:
    """A worker of this host."""

    #: Why it takes no task now; None if it takes them.
    refusal: str | None
    #: Troubles with which it still takes tasks.
    notices: list[str]
    #: Whether it has answered; one that has not is known by the leases that it renewed.
    answers: bool = True


def host_workers(settings: Settings) -> dict[str, WorkerHealth]:
    """Return the state of each worker of this host.

    By node name, and by owner where several have the same. A worker that has renewed its leases in
    the last `FORGET_WORKER_S` and does not answer is among them, if the Redis of records answers
    and no later process of its name has removed it. Raises `ServiceUnavailable` when the broker
    does not answer.
    """
    host = socket.gethostname()
    answers = all_workers(settings, host)
    found = {label: WorkerHealth(each.refusal, each.notices) for label, each in answers.items()}
    answered = {each.owner for each in answers.values()}
    owners: dict[str, float] = {}
    with suppress(ServiceUnavailable):  # the workers that answer say so themselves, after a while
        owners = _owners(settings)
    for owner, renewed_s in owners.items():
        silent_s = time.time() - renewed_s
        if owner not in answered and owner.startswith(f"{host}:") and silent_s < FORGET_WORKER_S:
            name = f"{owner.split(':')[1]}@{host} ({owner})"
            refusal = f"does not answer; it last renewed its leases {silent_s:.0f} s ago"
            found[name] = WorkerHealth(refusal, [], answers=False)
    return found


@dataclass(frozen=True)
class WorkerAnswer:
    """What a worker says of itself."""

    #: Empty from a worker of an earlier version.
    owner: str
    #: Why it takes no task now; None if it takes them.
    refusal: str | None
    device: str
    #: Ids of its tasks.
    running: list[str]
    #: Troubles with which it still takes tasks.
    notices: list[str]


def all_workers(settings: Settings, host: str | None = None) -> dict[str, WorkerAnswer]:
    """Return the answers of the broker's workers, sorted, by `name@host`; of one host only, if any.

    Workers with the same name are told apart by their owner, in brackets behind it. Raises
    `ServiceUnavailable` when Redis does not answer.
    """
    app = celery_app("sag-health", settings.broker_url.get_secret_value())
    # Otherwise every probe in a pool of n workers would cause n answers.
    only = {} if host is None else {"pattern": f".*@{re.escape(host)}$", "matcher": "pcre"}
    try:
        replies = app.control.broadcast(WELL, reply=True, timeout=ANSWER_TIMEOUT_S, **only)
    except (OperationalError, RedisError) as error:
        raise ServiceUnavailable(f"Redis does not answer: {error}") from error
    answers = [
        (name, WorkerAnswer(
            str(answer.get("owner", "")),
            answer.get("refusal", answer.get("error")),
            answer.get("device", "?"),
            answer.get("running", []),
            answer.get("notices", []),
        ))
        for reply in replies
        for name, answer in reply.items()
    ]  # fmt: skip
    names = Counter(name for name, _ in answers)
    labelled = {
        name if names[name] == 1 else f"{name} ({answer.owner or number})": answer
        for number, (name, answer) in enumerate(answers)
    }
    return dict(sorted(labelled.items()))


def _owners(settings: Settings) -> dict[str, float]:
    """The processes that have renewed leases and have not left, and when they last did."""
    redis = connect_impatiently(settings.events_redis_url.get_secret_value(), RECORDS_TIMEOUT_S)
    with redis, service_errors():
        found: Any = redis.zrange(settings.keys.workers, 0, -1, withscores=True)
    return {owner.decode(errors="replace"): renewed_s for owner, renewed_s in found}


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
