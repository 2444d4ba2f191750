"""Which fault strikes when, whom and how hard: a pure function of the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


class Kind(StrEnum):
    """What can happen."""

    #: SIGKILL of the process that does the work; of its supervisor; of everything of a machine,
    #: whose connections then stay half-open.
    KILL_CHILD = "kill-child"
    KILL_SUPERVISOR = "kill-supervisor"
    MACHINE_GONE = "machine-gone"
    #: SIGSTOP of the process that does the work for longer than a lease, then SIGCONT.
    FREEZE = "freeze"
    #: SIGTERM of a supervisor; a new one comes when it has ended.
    DRAIN = "drain"
    #: SIGTERM and SIGKILL of Redis.
    REDIS_RESTART = "redis-restart"
    REDIS_KILL = "redis-kill"
    #: The connections to Redis of one machine, or of the clients.
    HALF_OPEN = "half-open"
    DEAF = "deaf"
    DELAY = "delay"
    RESET = "reset"
    #: S3 for everybody.
    S3_REFUSE = "s3-refuse"
    S3_ERROR = "s3-error"
    S3_SLOW = "s3-slow"
    S3_STALL = "s3-stall"
    #: Messages of tasks that have a record vanish, waiting or held: what a Redis that loses its
    #: last second does, and a worker that dies before it notes what it took.
    MESSAGES_LOST = "messages-lost"
    #: What callers do.
    CANCEL_STORM = "cancel-storm"
    DUPLICATES = "duplicates"


#: Faults that end a process without a word, and so may only hit one that has begun to work.
KILLS = frozenset({Kind.KILL_CHILD, Kind.KILL_SUPERVISOR, Kind.MACHINE_GONE})
#: Those after which the process that did the work writes nothing more. One whose supervisor is
#: killed may still end what it has.
SILENCING = frozenset({Kind.KILL_CHILD, Kind.MACHINE_GONE})
#: Faults whose target is one machine's work; the target of link faults may also be the clients.
ON_MACHINE = KILLS | {Kind.FREEZE, Kind.DRAIN}
ON_LINK = frozenset({Kind.HALF_OPEN, Kind.DEAF, Kind.DELAY, Kind.RESET})
#: Faults of all machines at once.
ON_ALL = frozenset(
    {
        Kind.REDIS_RESTART,
        Kind.REDIS_KILL,
        Kind.S3_REFUSE,
        Kind.S3_ERROR,
        Kind.S3_SLOW,
        Kind.S3_STALL,
    }
)

#: How often a kind occurs among the others, and how long it lasts, in seconds. For what is killed
#: or drained it is the time until it is started again.
WEIGHTS: dict[Kind, tuple[int, tuple[float, float]]] = {
    Kind.KILL_CHILD: (4, (0.2, 3.0)),
    Kind.KILL_SUPERVISOR: (2, (0.2, 3.0)),
    Kind.MACHINE_GONE: (2, (1.0, 6.0)),
    Kind.FREEZE: (2, (6.0, 12.0)),
    Kind.DRAIN: (2, (0.0, 1.0)),
    Kind.REDIS_RESTART: (1, (0.1, 3.0)),
    Kind.REDIS_KILL: (1, (0.1, 8.0)),
    Kind.HALF_OPEN: (2, (4.0, 25.0)),
    Kind.DEAF: (1, (3.0, 12.0)),
    Kind.DELAY: (1, (2.0, 6.0)),
    Kind.RESET: (1, (0.0, 0.0)),
    Kind.S3_REFUSE: (1, (1.0, 6.0)),
    Kind.S3_ERROR: (1, (1.0, 6.0)),
    Kind.S3_SLOW: (1, (1.0, 6.0)),
    Kind.S3_STALL: (1, (1.0, 8.0)),
    Kind.MESSAGES_LOST: (1, (0.0, 0.0)),
    Kind.CANCEL_STORM: (1, (0.0, 0.0)),
    Kind.DUPLICATES: (1, (0.0, 0.0)),
}


@dataclass(frozen=True)
class Fault:
    """One thing that happens."""

    number: int
    kind: Kind
    #: Pause since the fault before it.
    after_s: float
    #: Number of a machine; for a link fault the number after the last machine is the clients.
    target: int
    lasts_s: float
    #: 0 to 1: delay, share of the open tasks, which status.
    strength: float


def faults(seed: int, kinds: Collection[Kind], machines: int, every_s: float) -> Iterator[Fault]:
    """Faults without end, one in `every_s` seconds in the mean.

    Kinds are drawn from a bag that is filled anew when it is empty, so that each comes in its turn
    also in a short run; every fault takes as many draws as any other.
    """
    rng = random.Random(seed)
    bag: list[Kind] = []
    number = 0
    while kinds:
        if not bag:
            bag = [kind for kind in Kind if kind in kinds for _ in range(WEIGHTS[kind][0])]
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
