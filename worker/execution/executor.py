"""One delivery of a task, from the message to its outcome, as a row of named steps."""

from __future__ import annotations

import json
import logging
import threading
from typing import TYPE_CHECKING

from worker import metrics
from worker.execution import endings
from worker.execution.circuit_breaker import OURS, CircuitBreaker
from worker.execution.outcome import (
    Cancelled,
    Dropped,
    Expired,
    Failed,
    Outcome,
    Requeued,
    Succeeded,
)
from worker.execution.resolved_request import ResolvedRequest
from worker.job_control import Control, Stop
from worker.record.task_record import Claim, ClaimAnswer, Ended, Held, WriteAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from api_contracts.errors import TaskError
    from worker.config.settings import Settings
    from worker.execution.attempt import Attempts
    from worker.execution.delivery import Delivery
    from worker.record.task_record import TaskRecord
    from worker.recovery.lease import Lease

logger = logging.getLogger(__name__)


class Executor:
    """Does deliveries, on as many threads as the worker has slots."""

    def __init__(  # its parts
        self,
        settings: Settings,
        claims: TaskRecord,
        lease: Lease,
        attempts: Attempts,
        device: str,
        on_broken: Callable[[str], None],
    ) -> None:
        """All parts connect or start on first use; `device` is what the events name.

        `on_broken` is called with the reason when this process is to do nothing more.
        """
        self._settings, self._claims, self._lease = settings, claims, lease
        self._attempts, self.device = attempts, device
        self._lock = threading.Lock()
        self._running: dict[str, Control] = {}
        self._draining = False
        self._stalled = False
        self._on_broken = on_broken
        self._breaker = CircuitBreaker(self._break)

    @property
    def refusal(self) -> str | None:
        """Why no task would be claimed now; None when one would be."""
        if self._breaker.reason is not None:
            return self._breaker.reason
        if self._stalled:
            return "a step does not end"
        if self._draining:
            return "leaving"
        if not self._lease.is_well:
            return f"no lease could be renewed for {self._lease.silent_s:.0f} s"
        return None

    @property
    def running(self) -> list[str]:
        """The ids of the deliveries that are being done."""
        with self._lock:
            return sorted(self._running)

    def execute(self, delivery: Delivery) -> Outcome:
        """Check, claim, denoise, store, finish. Raises only when Redis stays away."""
        with self._lock:
            is_running = delivery.task_id in self._running
            control = self._running.setdefault(delivery.task_id, Control())
            if self._draining:
                control.request(Stop.DRAINED)
        if is_running:
            outcome: Outcome = self._dropped(delivery, "a duplicate: this process is doing it")
        else:
            try:
                outcome = self._deliver(delivery, control)
            finally:
                with self._lock:
                    del self._running[delivery.task_id]
        metrics.DELIVERIES.labels(type(outcome).__name__.lower()).inc()
        return outcome

    def is_known(self, task_id: str) -> bool:
        """Whether the task has a record, of whatever kind."""
        return self._claims.is_known(task_id)

    def close(self, task_id: str) -> None:
        """Celery's result says how a task ended: nothing is left to do for it but to push."""
        self._claims.close(task_id)

    def give_back(self, reason: str) -> None:
        """Give back all tasks of a process that hangs, and claim no more; each is an attempt."""
        self._stalled = True
        for claim, _ in self._lease.held():
            outcome: Outcome = Requeued(f"worker stalled: {reason}", counts=True)
            if claim.attempt >= self._settings.max_attempts:
                outcome = Failed(endings.stalled(claim, reason))
            self._finish(claim, self._claims.metadata(claim.task_id), outcome)

    def drain(self) -> None:
        """Give back every task that is not done, before its next UNet call; claim no more."""
        with self._lock:
            self._draining = True
            controls = list(self._running.values())
        for control in controls:
            control.request(Stop.DRAINED)

    def _break(self, reason: str) -> None:
        self.drain()
        self._on_broken(reason)

    def _deliver(self, delivery: Delivery, control: Control) -> Outcome:
        checked = delivery.checked(self._settings)
        order = checked if isinstance(checked, ResolvedRequest) else None
        claim = self._claim(delivery, order)
        match claim:
            case Held(owner=owner):
                return self._dropped(delivery, f"a duplicate: {owner} is doing it")
            case Ended():
                earlier = endings.earlier(claim)
                logger.info("task %s: not run, it has %s before", delivery.task_id, earlier)
                return earlier
        logger.info(
            "task %s attempt %d: claimed (fence %d)", claim.task_id, claim.attempt, claim.fence
        )
        self._lease.hold(claim, control)
        with metrics.RUNNING.track_inprogress():
            try:
                metadata = order.request.metadata if order else {}
                return self._finish(claim, metadata, self._outcome(claim, checked, control))
            finally:
                self._lease.let_go(claim)

    def _outcome(
        self, claim: Claim, checked: ResolvedRequest | TaskError, control: Control
    ) -> Outcome:
        match claim.answer:
            case ClaimAnswer.CANCELLED:
                return Cancelled(0)
            case ClaimAnswer.EXPIRED:
                return Expired(0)
            case ClaimAnswer.OVERDUE:
                return Expired(0, by_message=True)
            case ClaimAnswer.EXHAUSTED:
                return Failed(endings.exhausted(claim))
            case ClaimAnswer.RUN if not isinstance(checked, ResolvedRequest):
                return Failed(checked)
            case ClaimAnswer.RUN:
                return self._run(claim, checked, control)

    def _run(self, claim: Claim, checked: ResolvedRequest, control: Control) -> Outcome:
        outcome = self._attempts.work(claim, checked, control)
        fault = None
        if isinstance(outcome, Failed) and outcome.error.code in OURS:
            fault = outcome.error.message
            if claim.attempt < self._settings.max_attempts:
                outcome = Requeued(f"{outcome.error.code}: {fault}"[:500], counts=True)
        self._breaker.note(claim.task_id, outcome, fault)
        return outcome

    def _dropped(self, delivery: Delivery, reason: str) -> Dropped:
        logger.info("task %s: not run, %s", delivery.task_id, reason)
        return Dropped(reason)

    def _claim(self, delivery: Delivery, order: ResolvedRequest | None) -> Claim | Held | Ended:
        started = None
        if order is not None:
            started = {
                "model": order.request.model,
                "device": self.device,
                "metadata": order.request.metadata,
            }
            if self._settings.log_prompts:
                logger.info("task %s: %s", delivery.task_id, order.request.prompts)
        return self._claims.claim(
            delivery.task_id,
            started=started,
            request=json.dumps(order.request.to_wire()) if order else delivery.kept,
            queue=delivery.queue,
            deadline_s=order.request.deadline_s if order else None,
            expires_at_s=delivery.expires_at_s,
            max_attempts=self._settings.max_attempts,
        )

    def _finish(self, claim: Claim, metadata: Mapping[str, str], outcome: Outcome) -> Outcome:
        """Write the end behind the fence; a claim that was overtaken ends as `Dropped`."""
        who = f"task {claim.task_id} attempt {claim.attempt}"
        if isinstance(outcome, Dropped):
            logger.warning("%s: stopped, %s", who, outcome)
            return outcome
        if isinstance(outcome, Requeued):
            fields = {"reason": outcome.reason, "metadata": metadata}
            answer = self._claims.requeue(claim, fields, counts=outcome.counts)
            if answer is WriteAnswer.CANCEL_REQUESTED:
                return self._finish(claim, metadata, Cancelled(outcome.step))
            ours = answer is WriteAnswer.WRITTEN
        else:
            status, fields = endings.terminal(outcome)
            kept = endings.kept(outcome)
            dead = endings.why_dead(outcome)
            fields["metadata"] = metadata
            ours = self._claims.finish(claim, status, kept, fields, dead)
        if not ours:
            logger.warning("%s: %s, discarded: another worker has claimed it", who, outcome)
            return Dropped("another worker has claimed it")
        logger.info("%s: %s", who, outcome)
        if isinstance(outcome, Succeeded):
            metrics.TASK_S.observe(outcome.result.timings.total_s)
        return outcome
