"""A worker whose parts are the real ones, but for Celery's consumer, the engine and S3."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from redis.exceptions import NoScriptError

from api_contracts.names import PRIORITIES, queue_list
from api_contracts.redis_io.connection import connect, connect_impatiently
from benchmarks.pool import life
from benchmarks.pool import plan as plans
from benchmarks.pool.plan import KEYS, QUEUE, TIMED
from benchmarks.pool.rounds import Rounds
from worker.app import create_app
from worker.background import BackgroundThread, log_error
from worker.broker.celery_overrides import Backend
from worker.broker.held_messages import HeldMessages
from worker.broker.intake import TAKE, Intake, Taken, WaitingList
from worker.broker.queue_watch import QueueWatch, WaitState
from worker.config.settings import Settings
from worker.execution.outcome import TaskCancelled, TaskSucceeded
from worker.job_control import Control, Stop
from worker.push.celery_replies import CeleryReplies
from worker.push.pusher import Pusher
from worker.push.webhooks import Webhooks
from worker.record.celery_state import CeleryState
from worker.record.claim import Claim
from worker.record.event_publisher import EventPublisher
from worker.record.task_record import TaskRecord
from worker.recovery.active_tasks import ActiveTask, ActiveTasks
from worker.recovery.lease import Lease
from worker.recovery.reconciler import Reconciler
from worker.recovery.timing import message_lease_s, renewal_timeout_s

if TYPE_CHECKING:
    from celery import Celery

    from benchmarks.pool.plan import Plan

logger = logging.getLogger(__name__)

RECORD_TTL_S = 86_400
#: Writing to S3, in seconds.
UPLOAD_S = 0.1
LISTS = [WaitingList(queue_list(QUEUE, each), QUEUE, each) for each in PRIORITIES]


@dataclass
class Log:
    """What the workers of a process did, by the monotonic clock."""

    #: When each task succeeded.
    ended_s: list[float] = field(default_factory=list)
    #: When timed tasks were claimed, and when their cancel was known to their worker, by id.
    claimed_s: dict[str, float] = field(default_factory=dict)
    cancelled_s: dict[str, float] = field(default_factory=dict)
    #: Errors that a real worker would log; there should be none.
    errors: list[str] = field(default_factory=list)


class _TimedControl(Control):
    """Logs when a cancel is known."""

    def __init__(self, task_id: str, log: Log) -> None:
        super().__init__()
        self._task_id, self._log = task_id, log

    def request(self, reason: Stop) -> None:
        """As `Control.request`."""
        if reason is Stop.CANCELLED:
            self._log.cancelled_s.setdefault(self._task_id, time.monotonic())
        super().request(reason)


class _Backends:
    """Celery's result backends: as in its `app.backend`, one a thread unless it is thread-safe."""

    def __init__(self, app: Celery, url: str) -> None:
        self._app, self._url = app, url
        self._first = self._new()
        self._local = threading.local()

    @property
    def mine(self) -> Any:  # noqa: ANN401  # Celery has no types
        """The backend of this thread."""
        if self._first.thread_safe:
            return self._first
        if not hasattr(self._local, "backend"):
            self._local.backend = self._new()
        return self._local.backend

    def _new(self) -> Any:  # noqa: ANN401  # as above
        return Backend(app=self._app, url=self._url)


def settings_app(url: str) -> Celery:
    """A worker's Celery application, for its settings."""
    return create_app(Settings(broker_url=SecretStr(url)))


@cache
def _webhooks() -> Webhooks:
    """One for all: it reads the system's certificates, 30 ms, and calls no Redis."""
    return Webhooks([], [], private_addresses=False)


class SimulatedWorker:
    """Built as `worker.runtime.WorkerProcess` builds a process."""

    def __init__(self, plan: Plan, number: int, app: Celery, log: Log) -> None:
        """`app` has Celery's settings; connects on `start`."""
        self._plan, self._log, self._held = plan, log, set[str]()
        url, lease_s = plan.url, plan.lease_s
        owner = f"pool-{number}:simulated:{secrets.token_hex(4)}"
        impatient_s = renewal_timeout_s(lease_s)
        self._record = TaskRecord(
            connect(url), KEYS, owner, record_ttl_s=RECORD_TTL_S, lease_s=lease_s
        )
        self._tasks, pushes = ActiveTasks(), self._record.pushes
        wait_state = WaitState()
        self._parts: list[Any] = [
            Lease(
                connect_impatiently(url, impatient_s), KEYS, self._tasks,
                HeldMessages(connect_impatiently(url, impatient_s)), lambda: list(self._held),
                lease_s, owner=owner, queues=[QUEUE],
            ),
            QueueWatch(connect_impatiently(url, impatient_s), wait_state, owner),
            Reconciler(
                connect(url), KEYS, HeldMessages(connect(url)), pushes, [QUEUE],
                lease_s=lease_s, record_ttl_s=RECORD_TTL_S,
            ),
            Pusher(
                pushes, CeleryReplies([], url), _webhooks(), 3600
            ),
        ]  # fmt: skip
        self._backends = _Backends(app, url)
        progress: Any = Backend(app=app, url=url)
        # Of several tasks in one call, where the backend has such a call.
        store: Any = getattr(progress, "store_running", progress.store_result)
        self._publisher = EventPublisher(self._record, CeleryState(store))
        self._rounds = Rounds(plan, self._publisher, self._on_error)
        self._broker = connect(url)
        self._intake = Intake(owner, message_lease_s(lease_s), wait_state)
        self._slots = ThreadPoolExecutor(plan.slots)
        self._has_slot = threading.Event()
        self._consumer = BackgroundThread("consumer", self._take, self._on_error)
        self._connection: Any = None

    def start(self) -> None:
        """Connect and begin to take messages."""
        self._connection = self._broker.connection_pool.get_connection()
        for part in (*self._parts, self._rounds, self._consumer):
            part.start()

    def close(self) -> None:
        """Stop all threads; what runs is left to the next worker."""
        self._consumer.stop()
        self._rounds.stop()
        for part in self._parts:
            part.close()
        self._publisher.close()

    def _take(self) -> None:
        """One call of `worker.broker.transport.Channel`, and what it does with the answer."""
        self._has_slot.clear()
        if len(self._held) >= self._plan.slots:
            self._has_slot.wait(1.0)
            return
        if (pause_s := self._intake.pause_s) > 0:
            time.sleep(pause_s)
        self._connection.send_command(*self._intake.next_call(LISTS, tasks=len(self._held)))
        try:
            answer = self._broker.parse_response(self._connection, self._intake.command)
        except NoScriptError:
            self._intake.lost()
            self._broker.script_load(TAKE.source)
            return
        if (taken := self._intake.answered(answer)) is not None:
            self._held.add(taken.tag)
            self._slots.submit(self._execute, taken)

    def _execute(self, taken: Taken) -> None:
        try:
            task_id = json.loads(taken.entry)["headers"]["id"]
            if (task := self._tasks.add(task_id)) is not None:
                try:
                    self._deliver(task)
                finally:
                    self._tasks.remove(task)
            life.acknowledge(self._broker, taken.tag)
        except Exception as error:  # noqa: BLE001  # the benchmark reports it
            self._on_error(error)
        finally:
            self._held.discard(taken.tag)
            self._has_slot.set()

    def _deliver(self, task: ActiveTask) -> None:
        """As `worker.execution` does: claim, run, finish, store Celery's result, close."""
        task_id, record = task.task_id, self._record
        is_timed = task_id.startswith(TIMED)
        if is_timed:
            task.control = _TimedControl(task_id, self._log)
        claim = life.claim(record, task_id)
        if not isinstance(claim, Claim):
            return
        if is_timed:
            self._log.claimed_s[task_id] = time.monotonic()
        self._tasks.grant(task, claim)
        outcome = self._run(claim, task.control)
        life.finish(record, claim, outcome)
        life.store_result(self._backends.mine, task_id, outcome)
        record.close(task_id)
        if isinstance(outcome, TaskSucceeded):
            self._log.ended_s.append(time.monotonic())

    def _run(self, claim: Claim, control: Control) -> life.Ending:
        """As `worker.execution.attempt` does."""
        self._publisher.watch(claim, control)
        try:
            job = self._rounds.run(claim, control)
            if job.stopped is not None:
                return TaskCancelled(job.step)
            self._publisher.post(claim, "uploading", {"images": 1, "metadata": {}})
            for _ in ("picture", "manifest"):
                self._record.is_current(claim)
                time.sleep(UPLOAD_S / 2)
            return TaskSucceeded(plans.result(claim.task_id))
        finally:
            self._publisher.flush(claim)

    def _on_error(self, error: Exception) -> None:
        log_error(logger, "simulated worker", error)
        self._log.errors.append(repr(error)[:500])
