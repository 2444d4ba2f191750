"""One worker process: builds its parts, and starts and stops them in order."""

from __future__ import annotations

import logging
import os
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.worker import state

from api_contracts.redis_io.connection import connect, connect_impatiently
from worker import devices, metrics
from worker.broker.held_messages import HeldMessages
from worker.broker.held_requests import held_requests
from worker.broker.queue_watch import QueueWatch, WaitState
from worker.engine.engine import Engine
from worker.engine.loading.compiler import require_compiler
from worker.execution.artifacts import Artifacts
from worker.execution.attempt import AttemptRunner
from worker.execution.claim_gate import ClaimGate
from worker.execution.executor import Executor
from worker.exit_codes import DEVICE_FAILED
from worker.push.celery_replies import CeleryReplies
from worker.push.pusher import Pusher
from worker.push.webhooks import Webhooks
from worker.record.celery_state import CeleryState
from worker.record.event_publisher import EventPublisher
from worker.record.task_record import TaskRecord
from worker.recovery.active_tasks import ActiveTasks
from worker.recovery.exit_deadline import ExitDeadline
from worker.recovery.lease import Lease
from worker.recovery.pool_entry import WorkerState
from worker.recovery.reconciler import Reconciler
from worker.recovery.timing import renewal_timeout_s
from worker.recovery.watchdog import Watchdog
from worker.storage import Storage
from worker.tracing.traces import Traces

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from worker.config.settings import Settings
    from worker.record.celery_state import State

logger = logging.getLogger(__name__)

#: A second signal within this time of the first, in seconds, counts as the same: systemd may signal
#: the worker as well as the supervisor, which passes its signal on.
DUPLICATE_SIGNAL_S = 1.0
#: How long a broken process runs before it exits, so that `health` can report why, in seconds.
BROKEN_EXIT_DELAY_S = 5.0


class WorkerProcess:
    """All parts but the Celery application. Connects to nothing and loads no torch until `start`.

    Of Celery it uses the set of messages that the consumer holds, and the flag that stops it.
    """

    def __init__(
        self,
        settings: Settings,
        owner: str,
        store: Callable[[Mapping[str, State]], None],
    ) -> None:
        """`store` writes Celery's states by task id."""
        self._settings, self._owner = settings, owner
        self._signalled_s: list[float] = []
        broker_url = settings.broker_url.get_secret_value()
        events_url = settings.events_redis_url.get_secret_value()
        keys, lease_s = settings.keys, settings.lease_s
        record = TaskRecord(
            connect(events_url), keys, owner, record_ttl_s=settings.record_ttl_s, lease_s=lease_s
        )
        self._tasks = ActiveTasks()
        timeout_s = renewal_timeout_s(lease_s)
        self._lease = Lease(
            connect_impatiently(events_url, timeout_s),
            keys,
            self._tasks,
            HeldMessages(connect_impatiently(broker_url, timeout_s)),
            held_tags,
            lease_s,
            owner=owner,
            queues=settings.queues,
            state=self._pool_state,
        )
        self.gate = ClaimGate(self._lease)
        self._reconciler = Reconciler(
            connect(events_url),
            keys,
            HeldMessages(connect(broker_url)),
            record.pushes,
            settings.queues,
            lease_s=lease_s,
            record_ttl_s=settings.record_ttl_s,
        )
        self.wait_state = WaitState()
        self._queue_watch = QueueWatch(
            connect_impatiently(broker_url, timeout_s), self.wait_state, owner
        )
        webhooks = Webhooks(
            settings.webhook_hosts,
            settings.webhook_secrets,
            private_addresses=settings.webhook_private_addresses,
        )
        replies = CeleryReplies(settings.reply_to, broker_url)
        self._traces = Traces(owner)
        self._pusher = Pusher(record.pushes, replies, webhooks, settings.push_retry_s, self._traces)
        self._publisher = EventPublisher(record, CeleryState(store))
        devices.use_pci_order(settings.device)
        self._device = devices.resolve(settings.device)
        if settings.compile:
            require_compiler(self._device)
        self._engine = Engine(
            settings.specs,
            self._device,
            settings.offload,
            max_models=settings.max_models,
            max_batch_rows=settings.max_batch_rows,
            max_adapters=settings.max_adapters,
            compiled=settings.compile,
            load_timeout_s=settings.load_timeout_s,
        )
        self._storage = Storage(settings)
        artifacts = Artifacts(self._storage)
        self.executor = Executor(
            settings,
            record,
            self._tasks,
            self.gate,
            AttemptRunner(settings, record, self._publisher, self._engine, artifacts),
            device=self._device,
            on_broken=self._end_broken,
            traces=self._traces,
        )
        self._watchdog = Watchdog(
            self._check_device, self.executor.report_stall,
            pause_s=min(1.0, settings.step_timeout_s / 4),
        )  # fmt: skip
        self._exit_deadline = ExitDeadline(lambda: bool(self._tasks.ids), settings.exit_timeout_s)

    def start(self) -> None:
        """Start the background threads; those of the engine and the publisher start with a task."""
        self._traces.start()
        self._lease.start()
        self._queue_watch.start()
        self._reconciler.start()
        self._pusher.start()
        self._watchdog.start()
        if self._settings.metrics_port is not None and metrics.FOLDER not in os.environ:
            metrics.serve(self._settings.metrics_port)

    def state(self) -> dict[str, Any]:
        """What `health` reports: why no task would be claimed (None: one would), and of whom.

        `notices` are troubles with which it still claims tasks.
        """
        notices = [
            f"model {alias!r} is being downloaded for {seconds:.0f} s"
            for alias, seconds in self._engine.downloads_s.items()
        ]
        if (trouble := self._storage.trouble) is not None:
            notices.append(f"S3 fails: {trouble}"[:500])
        return {
            "refusal": self.gate.refusal, "device": self._device, "running": self._tasks.ids,
            "owner": self._owner, "notices": notices,
        }  # fmt: skip

    def _pool_state(self) -> WorkerState:
        """What this process tells the pool."""
        return WorkerState(
            slots=self._settings.slots,
            running=len(self._tasks.claimed()),
            refusal=self.gate.closed_because,
            device=self._device,
        )

    def drain(self) -> None:
        """Requeue what is unfinished after `SAG_DRAIN_TIMEOUT_S`, or at once when called again.

        For a signal's handler, too, which may have interrupted a line of the log: a line from here
        would raise, and Celery would not stop. Another thread writes it.
        """
        self._signalled_s.append(time.monotonic())
        wait_s = drain_s(self._signalled_s, self._settings.drain_timeout_s)
        self._exit_deadline.set(wait_s, status=0)
        _call_later(wait_s, self.executor.drain)
        say = partial(logger.info, "draining: unfinished tasks are requeued in %g s", wait_s)
        _call_later(0, say)

    def close(self) -> None:
        """Stop the threads once no delivery is left; the lease after all that needs it."""
        self._watchdog.close()
        self._queue_watch.close()
        self._engine.close()
        self._publisher.close()
        self._pusher.close()
        self._reconciler.close()
        self._lease.close()
        self._traces.close()

    def _check_device(self) -> str | None:
        """Why the device hangs, None if it does not. Updates metrics, too: called each second."""
        metrics.DOWNLOAD_S.set(max(self._engine.downloads_s.values(), default=0.0))
        metrics.WELL.set(self.gate.refusal is None)
        name = self._owner.split(":")[1]  # host:name:token
        metrics.RENEWED.labels(name).set(time.time() - self._lease.silent_s)
        return self._engine.stall(self._settings.step_timeout_s)

    def _end_broken(self, reason: str) -> None:
        """Exit a process that takes no more tasks; until then `health` reports the reason."""
        logger.critical("this process exits in %g s: %s", BROKEN_EXIT_DELAY_S, reason)
        _call_later(BROKEN_EXIT_DELAY_S, lambda: setattr(state, "should_stop", DEVICE_FAILED))
        self._exit_deadline.set(BROKEN_EXIT_DELAY_S, status=DEVICE_FAILED)


def _call_later(delay_s: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(delay_s, call)
    timer.daemon = True
    timer.start()


def drain_s(signalled_s: Sequence[float], timeout_s: float) -> float:
    """How long tasks may still run after signals to stop at these times, the newest just now."""
    return 0.0 if signalled_s[-1] - signalled_s[0] > DUPLICATE_SIGNAL_S else timeout_s


def held_tags() -> list[str]:
    """The delivery tags of all messages that Celery holds, waiting for a thread or running."""
    return [request.message.delivery_tag for request in held_requests()]
