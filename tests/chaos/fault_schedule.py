"""Draws faults: kind, target, time and strength are a pure function of the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


class FaultKind(StrEnum):
    """The kinds of faults."""

    #: SIGKILL of a worker process; of its supervisor; of all processes of a machine, whose
    #: connections then stay half-open.
    KILL_CHILD = "kill-child"
    KILL_SUPERVISOR = "kill-supervisor"
    MACHINE_GONE = "machine-gone"
    #: SIGSTOP of a worker process for longer than a lease, then SIGCONT.
    FREEZE = "freeze"
    #: SIGTERM of a supervisor; a new one is started when it has ended.
    DRAIN = "drain"
    #: SIGTERM and SIGKILL of Redis.
    REDIS_RESTART = "redis-restart"
    REDIS_KILL = "redis-kill"
    #: Sentinels promote a replica, asked to or after SIGKILL of the primary; `--sentinel` only.
    FAILOVER = "failover"
    #: Modes of the Redis link of one machine, or of the clients.
    HALF_OPEN = "half-open"
    DEAF = "deaf"
    DELAY = "delay"
    RESET = "reset"
    #: Modes of the S3 links of all machines.
    S3_REFUSE = "s3-refuse"
    S3_ERROR = "s3-error"
    S3_SLOW = "s3-slow"
    S3_STALL = "s3-stall"
    #: All stores refuse conditional writes with 501, as some gateways do.
    S3_CONDITIONS = "s3-conditions"
    #: Tasks for a model whose hub accepts connections and never answers.
    HUB_SILENT = "hub-silent"
    #: Celery's commands that would hold messages or steer them, to all workers.
    REMOTE_CONTROL = "remote-control"
    #: Messages of tasks with a record are deleted, waiting or unacknowledged: as by a Redis that
    #: loses its last second, or a worker that dies before it notes the message that it took.
    MESSAGES_LOST = "messages-lost"
    #: Open tasks are cancelled, or submitted again.
    CANCEL_STORM = "cancel-storm"
    DUPLICATES = "duplicates"


#: Faults that end a process at once; they may only hit one that has built its model.
KILLS = frozenset({FaultKind.KILL_CHILD, FaultKind.KILL_SUPERVISOR, FaultKind.MACHINE_GONE})
#: Faults after which the worker process writes nothing more. One whose supervisor is killed drains.
SILENCING = frozenset({FaultKind.KILL_CHILD, FaultKind.MACHINE_GONE})
#: Faults of one machine's processes; the target of link faults may also be the clients.
ON_MACHINE = KILLS | {FaultKind.FREEZE, FaultKind.DRAIN}
ON_LINK = frozenset({FaultKind.HALF_OPEN, FaultKind.DEAF, FaultKind.DELAY, FaultKind.RESET})
#: Faults of all machines at once.
ON_ALL = frozenset(
    {
        FaultKind.REDIS_RESTART,
        FaultKind.REDIS_KILL,
        FaultKind.FAILOVER,
        FaultKind.S3_REFUSE,
        FaultKind.S3_ERROR,
        FaultKind.S3_SLOW,
        FaultKind.S3_STALL,
        FaultKind.S3_CONDITIONS,
    }
)

#: Faults of a Redis without sentinels. With them workers go to the primary itself, past the links,
#: and one that starts again is a second primary for a while, whose writes are lost.
ON_ONE_REDIS = ON_LINK | {FaultKind.REDIS_RESTART, FaultKind.REDIS_KILL}

#: Weight of each kind, and its shortest and longest duration in seconds. For processes that end it
#: is the pause until they are started again.
WEIGHTS: dict[FaultKind, tuple[int, tuple[float, float]]] = {
    FaultKind.KILL_CHILD: (4, (0.2, 3.0)),
    FaultKind.KILL_SUPERVISOR: (2, (0.2, 3.0)),
    FaultKind.MACHINE_GONE: (2, (1.0, 6.0)),
    FaultKind.FREEZE: (2, (6.0, 12.0)),
    FaultKind.DRAIN: (2, (0.0, 1.0)),
    FaultKind.REDIS_RESTART: (1, (0.1, 3.0)),
    FaultKind.REDIS_KILL: (1, (0.1, 8.0)),
    FaultKind.FAILOVER: (2, (10.0, 10.0)),  # until the former primary is a replica
    FaultKind.HALF_OPEN: (2, (4.0, 25.0)),
    FaultKind.DEAF: (1, (3.0, 12.0)),
    FaultKind.DELAY: (1, (2.0, 6.0)),
    FaultKind.RESET: (1, (0.0, 0.0)),
    FaultKind.S3_REFUSE: (1, (1.0, 6.0)),
    FaultKind.S3_ERROR: (1, (1.0, 6.0)),
    FaultKind.S3_SLOW: (1, (1.0, 6.0)),
    FaultKind.S3_STALL: (1, (1.0, 8.0)),
    FaultKind.S3_CONDITIONS: (1, (1.0, 6.0)),
    FaultKind.HUB_SILENT: (1, (0.0, 0.0)),
    FaultKind.REMOTE_CONTROL: (1, (0.0, 0.0)),
    FaultKind.MESSAGES_LOST: (1, (0.0, 0.0)),
    FaultKind.CANCEL_STORM: (1, (0.0, 0.0)),
    FaultKind.DUPLICATES: (1, (0.0, 0.0)),
}


@dataclass(frozen=True)
class Fault:
    """One fault of the schedule."""

    number: int
    kind: FaultKind
    #: Pause after the fault before it.
    after_s: float
    #: Number of a machine; for a link fault the number after the last machine means the clients.
    target: int
    lasts_s: float
    #: 0 to 1: selects delay, share of the open tasks, HTTP status, or number of tasks.
    strength: float


def possible(kinds: Collection[FaultKind], *, sentinel: bool) -> frozenset[FaultKind]:
    """The kinds that a deployment with or without sentinels can have."""
    impossible = ON_ONE_REDIS if sentinel else {FaultKind.FAILOVER}
    return frozenset(kinds) - impossible


def faults(
    seed: int, kinds: Collection[FaultKind], machines: int, every_s: float
) -> Iterator[Fault]:
    """Faults without end, one in `every_s` seconds in the mean.

    Kinds are drawn from a bag that is filled again when it is empty, so that each occurs in a short
    run, too. Every fault takes the same number of draws.
    """
    rng = random.Random(seed)
    bag: list[FaultKind] = []
    number = 0
    while kinds:
        if not bag:
            bag = [kind for kind in FaultKind if kind in kinds for _ in range(WEIGHTS[kind][0])]
            rng.shuffle(bag)
        kind = bag.pop()
        shortest_s, longest_s = WEIGHTS[kind][1]
        after_s = every_s * rng.uniform(0.5, 1.5)
        target = rng.randrange(machines + 1)
        yield Fault(
            number,
            kind,
            after_s,
            target if kind in ON_LINK else target % machines,
            rng.uniform(shortest_s, longest_s),
            rng.random(),
        )
        number += 1
