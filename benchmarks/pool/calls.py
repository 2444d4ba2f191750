"""The calls of a worker's tasks, each kind for all tasks before the next kind."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from api_contracts import GenerationClient
from api_contracts.redis_io.connection import connect
from benchmarks.pool import life
from benchmarks.pool import plan as plans
from benchmarks.pool.plan import KEYS, NAMESPACE, QUEUE
from benchmarks.pool.worker import LISTS, RECORD_TTL_S, settings_app
from worker.broker.celery_overrides import Backend
from worker.broker.held_messages import HeldMessages
from worker.broker.intake import TAKE, Intake
from worker.broker.queue_watch import WaitState
from worker.execution.outcome import TaskSucceeded
from worker.job_control import Control
from worker.record.celery_state import CeleryState
from worker.record.claim import Claim
from worker.record.event_publisher import EventPublisher
from worker.record.task_record import TaskRecord
from worker.recovery.active_tasks import ActiveTask, ActiveTasks
from worker.recovery.lease import Lease
from worker.recovery.timing import message_lease_s

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.pool.plan import Plan

OWNER = "pool-0:costs:0"
#: Groups of as many tasks as a worker has slots.
GROUPS = 12


class Calls:
    """One worker, its parts called by hand."""

    def __init__(self, plan: Plan) -> None:
        """Connects on first use."""
        url = plan.url
        self._plan, self._redis = plan, connect(url)
        self._client = GenerationClient(url, NAMESPACE)
        self._record = TaskRecord(
            self._redis, KEYS, OWNER, record_ttl_s=RECORD_TTL_S, lease_s=plan.lease_s
        )
        # Its states are written below, of the tasks that would have one.
        silent: Any = lambda *_: None  # noqa: E731  # a name for its type
        self._publisher = EventPublisher(self._record, CeleryState(silent))
        self._backend: Any = Backend(app=settings_app(url), url=url)
        self._tasks = ActiveTasks()
        self._intake = Intake(OWNER, message_lease_s(plan.lease_s), WaitState())
        self._lease = Lease(
            self._redis, KEYS, self._tasks, HeldMessages(self._redis), lambda: self._tags,
            plan.lease_s, owner=OWNER, queues=[QUEUE],
        )  # fmt: skip
        self._tags: list[str] = []
        self._ids: list[str] = []
        self._claims: list[Claim] = []
        self._state = bytes(plan.checkpoint_bytes)

    def kinds(self) -> Sequence[tuple[str, Callable[[], int]]]:
        """Kinds in the order of a task's life; each returns the number of tasks it was made for."""
        number = GROUPS * self._plan.slots
        self._tags, self._ids, self._claims = [], [], []
        self._redis.script_load(TAKE.source)
        return [
            ("submit", partial(self._submit, number)),
            ("take", partial(self._take, number)),
            ("claim", self._claim_all),
            ("progress of a step", self._progress),
            ("checkpoint", self._checkpoint),
            ("PROGRESS state", self._states),
            ("lease", self._renew),
            ("before an upload", self._each(self._record.is_current)),
            ("finish", self._each(self._finish)),
            ("Celery's result", self._each(self._result)),
            ("close", self._each(lambda claim: self._record.close(claim.task_id))),
            ("acknowledge", self._acknowledge),
        ]

    def _each(self, call: Callable[[Claim], object]) -> Callable[[], int]:
        def all_of_them() -> int:
            for claim in self._claims:
                call(claim)
            return len(self._claims)

        return all_of_them

    def _groups(self) -> list[list[Claim]]:
        slots = self._plan.slots
        return [self._claims[at : at + slots] for at in range(0, len(self._claims), slots)]

    def _submit(self, number: int) -> int:
        for _ in range(GROUPS):
            self._client.submit_many([plans.REQUEST] * self._plan.slots)
        return number

    def _take(self, number: int) -> int:
        for tasks in range(number):
            call = self._intake.next_call(LISTS, tasks=tasks % self._plan.slots)
            taken = self._intake.answered(self._redis.execute_command(*call))
            if taken is None:
                raise RuntimeError("no message where there should be one")
            self._tags.append(taken.tag)
            self._ids.append(json.loads(taken.entry)["headers"]["id"])
        return number

    def _claim_all(self) -> int:
        for task_id in self._ids:
            claim = life.claim(self._record, task_id)
            if not isinstance(claim, Claim):
                raise TypeError(f"{task_id}: {claim}")
            self._claims.append(claim)
        return len(self._claims)

    def _progress(self) -> int:
        fields: dict[str, Any] = {
            "step": 1,
            "total_steps": 25,
            "eta_s": 1.234,
            "preview": None,
            "metadata": {},
        }
        return self._published(lambda claim: self._publisher.post(claim, "progress", fields))

    def _checkpoint(self) -> int:
        return self._published(lambda claim: self._publisher.save_checkpoint(claim, 5, self._state))

    def _published(self, post: Callable[[Claim], object]) -> int:
        """All tasks of a group at once, as a round does."""
        for group in self._groups():
            for claim in group:
                self._publisher.watch(claim, Control())
            for claim in group:
                post(claim)
            for claim in group:
                self._publisher.flush(claim)
        return len(self._claims)

    def _states(self) -> int:
        meta = {"step": 5, "total_steps": 25}
        for group in self._groups():
            states_of = {claim.task_id: (meta, "PROGRESS") for claim in group}
            if hasattr(self._backend, "store_running"):
                self._backend.store_running(states_of)
            else:
                for task_id, state in states_of.items():
                    self._backend.store_result(task_id, *state)
        return len(self._claims)

    def _renew(self) -> int:
        """As many tasks and messages as a worker holds, again and again."""
        group, tags = self._groups()[0], self._tags
        self._tags = tags[: self._plan.slots]
        active = [self._tasks.add(claim.task_id) or ActiveTask("") for claim in group]
        for task, claim in zip(active, group, strict=True):
            self._tasks.grant(task, claim)
        for _ in range(GROUPS):
            self._lease.renew()
        for task in active:
            self._tasks.remove(task)
        self._tags = tags
        return GROUPS * len(group)

    def _finish(self, claim: Claim) -> None:
        life.finish(self._record, claim, TaskSucceeded(plans.result(claim.task_id)))

    def _result(self, claim: Claim) -> None:
        outcome = TaskSucceeded(plans.result(claim.task_id))
        life.store_result(self._backend, claim.task_id, outcome)

    def _acknowledge(self) -> int:
        for tag in self._tags:
            life.acknowledge(self._redis, tag)
        return len(self._tags)
