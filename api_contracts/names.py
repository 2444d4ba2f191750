"""Strings that clients and workers share: task name, queues, ids and Redis keys."""

from __future__ import annotations

import re
from dataclasses import dataclass

TASK_NAME = "sag.generate"
DEFAULT_MODEL = "default"
DEFAULT_NAMESPACE = "sag"

#: A task id, which is also the Celery task id: it names keys in Redis and folders in S3.
#: At least one letter or digit, so that it is never `.` or `..`.
TASK_ID_PATTERN = r"^(?=.*[A-Za-z0-9])[A-Za-z0-9._-]{1,128}\Z"
#: Alias of a model; never a path or a hub id.
MODEL_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"

#: Largest message that a worker takes, in bytes: twice the largest request that the contract
#: allows. A record whose request or outcome is longer is not read.
MAX_MESSAGE_BYTES = 16 * 2**20
#: Priorities of a message, 0 first. Each has a Redis list of its own.
PRIORITIES = tuple(range(10))
#: Of a request that names none.
DEFAULT_PRIORITY = 5
#: Last of the urgent priorities, for which workers have slots in reserve. Plain Celery has the
#: levels 0, 3, 6 and 9 and rounds down, so its messages of the default priority are in list 3.
URGENT_PRIORITY = 2
#: Key of the list that wakes one worker, before its owner name.
WAKE_PREFIX = "sag.wake."
#: Added to the number of tasks of a ready worker that has a slot for urgent messages only.
URGENT_ONLY = 1000
#: kombu's separator between the queue's name and a priority above 0.
PRIORITY_SEPARATOR = "\x06\x16"

#: Broker options of clients and workers.
TRANSPORT_OPTIONS: dict[str, object] = {
    "priority_steps": list(PRIORITIES),
    "sep": PRIORITY_SEPARATOR,
    "queue_order_strategy": "priority",
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
}


def queue_name(model: str) -> str:
    """The Celery queue of a model."""
    return f"generate.{model}"


def queue_list(queue: str, priority: int) -> str:
    """The Redis list of one queue and priority."""
    return f"{queue}{PRIORITY_SEPARATOR}{priority}" if priority else queue


def queue_lists(model: str) -> list[str]:
    """The Redis lists of a model's queue, one for each priority."""
    return [queue_list(queue_name(model), priority) for priority in PRIORITIES]


def ready_key(queue: str) -> str:
    """Sorted set: the workers that wait for messages of a queue, by number of tasks they run.

    One that was woken and has not looked yet is scored by the time of that (Unix seconds).
    """
    return f"sag.ready.{queue}"


def is_urgent(priority: int) -> bool:
    """Whether messages of this priority may use slots in reserve."""
    return priority <= URGENT_PRIORITY


def wake_below(*, urgent: bool) -> int:
    """Number of tasks of ready workers that a message of this kind does not wake."""
    return 2 * URGENT_ONLY if urgent else URGENT_ONLY


def is_task_id(text: object) -> bool:
    """Whether `text` is a valid task id."""
    return isinstance(text, str) and re.match(TASK_ID_PATTERN, text) is not None


@dataclass(frozen=True)
class Keys:
    """The Redis keys of a namespace. Braces around the id keep a task's keys in one hash slot."""

    namespace: str = DEFAULT_NAMESPACE

    def task(self, task_id: str) -> str:
        """Hash: the task's record."""
        return f"{self.namespace}:{{{task_id}}}:task"

    @property
    def scratch(self) -> str:
        """Stream: a copy of a waiting task's events; `touched.lua` makes it to save memory."""
        return f"{self.namespace}:scratch"

    def events(self, task_id: str) -> str:
        """Stream: the task's events, entry `<seq>-0` for event `seq`."""
        return f"{self.namespace}:{{{task_id}}}:events"

    def checkpoint(self, task_id: str) -> str:
        """String: latents, sampler and generator state of a running task."""
        return f"{self.namespace}:{{{task_id}}}:checkpoint"

    @property
    def open(self) -> str:
        """Sorted set: ids of open tasks by when they were last written (Unix seconds).

        A task is open until it has ended and Celery's result is written, too.
        """
        return f"{self.namespace}:open"

    @property
    def pending_cancels(self) -> str:
        """Sorted set: ids without a record whose cancel was requested, by time (Unix seconds)."""
        return f"{self.namespace}:wishes"

    @property
    def pushes(self) -> str:
        """Sorted set: pending pushes as `<kind>:<id>`, by time of the next try (Unix seconds)."""
        return f"{self.namespace}:pushes"

    @property
    def dead(self) -> str:
        """Stream: dead letters, with request and reason."""
        return f"{self.namespace}:dead"

    @property
    def workers(self) -> str:
        """Sorted set: owners (`host:name:random`) by when they last renewed their leases.

        Unix seconds by the clock of each owner's host.
        """
        return f"{self.namespace}:workers"

    @property
    def pool(self) -> str:
        """Hash: by owner, what each process tells of itself, as JSON; see docs/record.md."""
        return f"{self.namespace}:pool"

    @property
    def reconciler(self) -> str:
        """String: the worker elected as reconciler; expires within seconds unless renewed."""
        return f"{self.namespace}:reconciler"

    @property
    def primary(self) -> str:
        """String: replication id of the Redis that a reconciler saw last, and since when.

        Unix seconds, 0 for the first one. On the broker and on the Redis of records.
        """
        return f"{self.namespace}:primary"

    @property
    def control(self) -> str:
        """Channel: ids whose cancel was requested. A hint only; the record decides."""
        return f"{self.namespace}:control"
