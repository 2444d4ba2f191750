"""One worker process: its parts, and the order in which they begin and end."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from celery.worker import state

from api_contracts.redis_io.connection import connect, connect_impatiently
from worker import devices, metrics
from worker.broker.held_messages import HeldMessages
from worker.engine.engine import Engine
from worker.execution.artifacts import Artifacts
from worker.execution.attempt import Attempts
from worker.execution.executor import Executor
from worker.exit_codes import DEVICE_FAILED
from worker.push.celery_replies import CeleryReplies
from worker.push.pusher import Pusher
from worker.push.webhooks import Webhooks
from worker.record.celery_state import CeleryState
from worker.record.event_publisher import EventPublisher
from worker.record.task_record import TaskRecord
from worker.recovery import release
from worker.recovery.lease import RENEWALS, Lease
from worker.recovery.reconciler import Reconciler
from worker.recovery.watchdog import Watchdog
from worker.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.config.settings import Settings

logger = logging.getLogger(__name__)

#: A signal that follows another within this time, in seconds, is its echo: systemd may send one to
#: each process beside the supervisor's.
ECHO_S = 1.0
#: How long a process that has failed says so before it ends, in seconds.
REST_S = 5.0


class Process:
    """All parts but the Celery application. Connects to nothing and loads no torch until it starts.

    Of Celery it knows what the consumer holds, and how to end it.
    """

    def __init__(
        self,
        settings: Settings,
        owner: str,
        store: Callable[[str, dict[str, Any], str], None],
        send: Callable[[str, Any, str], None],
    ) -> None:
        """`store` writes Celery's state: id, what is kept, state.

        `send` sends a task's message: id, request, queue.
        """
        self._settings, self._owner = settings, owner
        self._asked_s: list[float] = []
        broker_url = settings.broker_url.get_secret_value()
        events_url = settings.events_redis_url.get_secret_value()
        keys, lease_s = settings.keys, settings.lease_s
        self._claims = TaskRecord(
            connect(events_url), keys, owner, record_ttl_s=settings.record_ttl_s, lease_s=lease_s
        )
        answer_s = lease_s / RENEWALS
        self.lease = Lease(
            connect_impatiently(events_url, answer_s),
            keys,
            HeldMessages(connect_impatiently(broker_url, answer_s)),
            held_tags,
            lease_s,
        )
        self._reconciler = Reconciler(
            connect(events_url),
            keys,
            HeldMessages(connect(broker_url)),
            send,
            lease_s=lease_s,
            record_ttl_s=settings.record_ttl_s,
        )
        webhooks = Webhooks(
            settings.webhook_hosts,
            settings.webhook_secrets,
            private_addresses=settings.webhook_private_addresses,
        )
        replies = CeleryReplies(settings.reply_to, broker_url)
        self._pusher = Pusher(self._claims.pushes, replies, webhooks, settings.push_retry_s)
        self._publisher = EventPublisher(self._claims, CeleryState(store))
        device = devices.resolve(settings.device)
        self._engine = Engine(
            settings.specs,
            device,
            settings.offload,
            max_models=settings.max_models,
            max_batch_rows=settings.max_batch_rows,
            compiled=settings.compile,
        )
        shelf = Artifacts(Storage(settings))
        attempts = Attempts(settings, self._claims, self._publisher, self._engine, shelf)
        self.executor = Executor(
            settings, self._claims, self.lease, attempts, device, self._leave_broken
        )
        self._watchdog = Watchdog(self._look, settings.step_timeout_s, self._give_back)

    def start(self) -> None:
        """Begin what is there before the first task."""
        self.lease.start()
        self._reconciler.start()
        self._pusher.start()
        self._watchdog.start()
        if self._settings.metrics_port is not None and metrics.FOLDER not in os.environ:
            metrics.serve(self._settings.metrics_port)

    def state(self) -> dict[str, Any]:
        """Why no task would be claimed now (None: one would), the device, and what is running."""
        executor = self.executor
        return {
            "refusal": executor.refusal, "device": executor.device, "running": executor.running,
        }  # fmt: skip

    def drain(self) -> None:
        """Give back what is not done `SAG_DRAIN_TIMEOUT_S` from now; asked again, at once."""
        self._asked_s.append(time.monotonic())
        wait_s = drain_s(self._asked_s, self._settings.drain_timeout_s)
        logger.info("leaving: tasks may end within %g s", wait_s)
        self._later(wait_s, self.executor.drain)

    def close(self) -> None:
        """End the threads, when no delivery is left; the lease last, as it keeps the rest ours."""
        self._watchdog.close()
        self._engine.close()
        self._publisher.close()
        self._pusher.close()
        self._reconciler.close()
        self.lease.close()

    def _look(self) -> float:
        """How long the step at hand lasts; asked each second, so the metrics are told here."""
        metrics.WELL.set(self.executor.refusal is None)
        name = self._owner.split(":")[1]  # host:name:token
        metrics.RENEWED.labels(name).set(time.time() - self.lease.silent_s)
        return self._engine.step_s

    def _leave_broken(self, reason: str) -> None:
        """Take no more tasks, say why for a while, and end."""
        logger.critical("this process ends in %g s: %s", REST_S, reason)
        self._later(REST_S, lambda: setattr(state, "should_stop", DEVICE_FAILED))

    def _later(self, pause_s: float, call: Callable[[], None]) -> None:
        timer = threading.Timer(pause_s, call)
        timer.daemon = True
        timer.start()

    def _give_back(self) -> None:
        """Give back all tasks of a process that hangs, and their messages."""
        self.executor.give_back(f"a step lasted longer than {self._settings.step_timeout_s:g} s")
        release.give_back(self._settings, self._owner, "stall")


def drain_s(asked_s: Sequence[float], timeout_s: float) -> float:
    """How long tasks may still take after signals to stop at these times, the newest just now."""
    return 0.0 if asked_s[-1] - asked_s[0] > ECHO_S else timeout_s


def held_tags() -> list[str]:
    """The delivery tags of all messages that Celery holds, waiting for a thread or at work."""
    while True:
        try:
            return [request.message.delivery_tag for request in list(state.reserved_requests)]
        except RuntimeError:  # another thread has changed the set meanwhile
            continue
