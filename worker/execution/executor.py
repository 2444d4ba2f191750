"""One delivery of a task, from the message to its outcome: resolve, claim, run, finish."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from worker import metrics
from worker.execution import attempt_span
from worker.execution.circuit_breaker import PROCESS_FAULTS, CircuitBreaker
from worker.execution.claim_gate import LEAVING
from worker.execution.outcome import (
    Outcome,
    TaskCancelled,
    TaskDropped,
    TaskExpired,
    TaskFailed,
    TaskRequeued,
    TaskSucceeded,
    attempts_exhausted,
    dead_letter_reason,
    final_event,
    from_record,
    to_record,
    worker_stalled,
)
from worker.execution.resolved_request import ResolvedRequest
from worker.job_control import Stop
from worker.record.claim import Claim, ClaimAnswer, Ended, Held, WriteAnswer
from worker.tracing.traces import Traces

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from api_contracts.errors import TaskError
    from worker.config.settings import Settings
    from worker.execution.attempt import AttemptRunner
    from worker.execution.claim_gate import ClaimGate
    from worker.execution.delivery import Delivery
    from worker.job_control import Control
    from worker.record.task_record import TaskRecord
    from worker.recovery.active_tasks import ActiveTask, ActiveTasks

logger = logging.getLogger(__name__)


class Executor:
    """Executes deliveries, on as many threads as the worker has slots."""

    def __init__(  # noqa: PLR0913  # its parts
        self,
        settings: Settings,
        record: TaskRecord,
        tasks: ActiveTasks,
        gate: ClaimGate,
        attempts: AttemptRunner,
        *,
        device: str,
        on_broken: Callable[[str], None],
        traces: Traces | None = None,
    ) -> None:
        """All parts connect or start on first use; `device` is what events name.

        `on_broken` is called with the reason when the circuit breaker has tripped.
        """
        self._settings, self._record, self._tasks = settings, record, tasks
        self._gate, self._attempts = gate, attempts
        self._device, self._on_broken = device, on_broken
        self._traces = traces or Traces()
        self._breaker = CircuitBreaker(self._trip)

    def execute(self, delivery: Delivery) -> Outcome:
        """Run a delivery to its outcome. Raises only when Redis stays unavailable."""
        task = self._tasks.add(delivery.task_id)
        if task is None:
            outcome: Outcome = _dropped(delivery, "a duplicate: this process runs the task")
        else:
            try:
                outcome = self._deliver(delivery, task)
            finally:
                self._tasks.remove(task)
        metrics.DELIVERIES.labels(outcome.label).inc()
        return outcome

    def is_known(self, task_id: str) -> bool:
        """Whether the key of the task's record exists, of any type."""
        return self._record.is_known(task_id)

    def close(self, task_id: str) -> None:
        """Close an ended task whose Celery result is written: only its pushes remain."""
        self._record.close(task_id)

    def report_stall(self, reason: str) -> None:
        """Requeue all tasks of a process that hangs; each counts as an attempt.

        A task on its last attempt fails with code `worker_stalled`.
        """
        self._gate.close("a step does not end")
        try:
            for task, claim in self._tasks.claimed():
                outcome: Outcome = TaskRequeued(f"worker stalled: {reason}", counts=True)
                if claim.attempt >= self._settings.max_attempts:
                    outcome = TaskFailed(worker_stalled(claim, reason))
                outcome = self._finish(claim, self._record.metadata(claim.task_id), outcome)
                attempt_span.end(self._traces, task, outcome)
        finally:
            self._traces.close()  # this process exits next, also where Redis stays away

    def drain(self) -> None:
        """Requeue every unfinished task before its next UNet call; claim no more."""
        self._gate.close(LEAVING)
        self._tasks.stop_all(Stop.DRAINED)

    def _trip(self, reason: str) -> None:
        self._gate.close(reason)
        self.drain()
        self._on_broken(reason)

    def _deliver(self, delivery: Delivery, task: ActiveTask) -> Outcome:
        checked = delivery.resolve(self._settings)
        resolved = checked if isinstance(checked, ResolvedRequest) else None
        claim = self._claim(delivery, resolved)
        match claim:
            case Held(owner=owner):
                return _dropped(delivery, f"a duplicate: {owner} runs the task")
            case Ended():
                outcome = from_record(claim)
                logger.info("task %s: duplicate message, already %s", delivery.task_id, outcome)
                return outcome
        logger.info(
            "task %s attempt %d: claimed (fence %d)", claim.task_id, claim.attempt, claim.fence
        )
        self._tasks.grant(task, claim)
        attempt_span.begin(self._traces, task, claim, delivery, resolved)
        metadata = resolved.request.metadata if resolved else {}
        with metrics.RUNNING.track_inprogress():
            outcome = self._outcome(claim, checked, task.control)
            with task.control.stage("finish"):
                outcome = self._finish(claim, metadata, outcome)
        attempt_span.end(self._traces, task, outcome)
        return outcome

    def _outcome(
        self, claim: Claim, checked: ResolvedRequest | TaskError, control: Control
    ) -> Outcome:
        match claim.answer:
            case ClaimAnswer.CANCELLED:
                return TaskCancelled(0)
            case ClaimAnswer.EXPIRED:
                return TaskExpired(0)
            case ClaimAnswer.OVERDUE:
                return TaskExpired(0, by_message=True)
            case ClaimAnswer.EXHAUSTED:
                return TaskFailed(attempts_exhausted(claim))
            case ClaimAnswer.RUN if not isinstance(checked, ResolvedRequest):
                return TaskFailed(checked)
            case ClaimAnswer.RUN:
                return self._run(claim, checked, control)

    def _run(self, claim: Claim, resolved: ResolvedRequest, control: Control) -> Outcome:
        if claim.attempt == 1:
            metrics.QUEUE_WAIT_S.observe(claim.queued_s)
        outcome = self._attempts.run(claim, resolved, control)
        fault, cause = None, claim.task_id
        if (
            isinstance(outcome, TaskFailed)
            and outcome.error.code in PROCESS_FAULTS
            and outcome.may_be_of_process
        ):
            fault, cause = outcome.error.message, outcome.shared_fault or claim.task_id
            if outcome.error.retryable and claim.attempt < self._settings.max_attempts:
                outcome = TaskRequeued(f"{outcome.error.code}: {fault}"[:500], counts=True)
        self._breaker.count(cause, outcome, fault)
        return outcome

    def _claim(self, delivery: Delivery, resolved: ResolvedRequest | None) -> Claim | Held | Ended:
        """Claim the task, also one whose request is refused: its outcome needs a fence, too."""
        started = None
        if resolved is not None:
            started = {
                "model": resolved.request.model,
                "device": self._device,
                "metadata": resolved.request.metadata,
            }
            if self._settings.log_prompts:
                logger.info("task %s: %s", delivery.task_id, resolved.request.prompts)
        return self._record.claim(
            delivery.task_id,
            started=started,
            request=json.dumps(resolved.request.to_wire()) if resolved else delivery.refused_json,
            queue=delivery.queue,
            deadline_s=resolved.request.deadline_s if resolved else None,
            expires_at_s=delivery.expires_at_s,
            max_attempts=self._settings.max_attempts,
        )

    def _finish(self, claim: Claim, metadata: Mapping[str, str], outcome: Outcome) -> Outcome:
        """Write the outcome; `TaskDropped` when another worker has claimed the task since."""
        who = f"task {claim.task_id} attempt {claim.attempt}"
        match outcome:
            case TaskDropped():
                logger.warning("%s: dropped, %s", who, outcome)
                return outcome
            case TaskRequeued(reason=reason, counts=counts):
                fields = {"reason": reason, "metadata": metadata}
                answer = self._record.requeue(claim, fields, counts=counts)
                if answer is WriteAnswer.CANCEL_REQUESTED:
                    return self._finish(claim, metadata, TaskCancelled(outcome.step))
                written = answer is WriteAnswer.WRITTEN
            case _:
                status, fields = final_event(outcome)
                written = self._record.finish(
                    claim, status, to_record(outcome), fields | {"metadata": metadata},
                    dead_letter_reason(outcome),
                )  # fmt: skip
        if not written:
            logger.warning(
                "%s: outcome not written (%s): another worker has claimed the task", who, outcome
            )
            return TaskDropped("another worker has claimed it")
        logger.info("%s: %s", who, outcome)
        if isinstance(outcome, TaskFailed):
            metrics.FAILURES.labels(outcome.error.code).inc()
        if dead_letter_reason(outcome):
            metrics.DEAD_LETTERS.inc()
        if isinstance(outcome, TaskSucceeded):
            metrics.observe_success(outcome.result.timings)
        return outcome


def _dropped(delivery: Delivery, reason: str) -> TaskDropped:
    logger.info("task %s: message dropped, %s", delivery.task_id, reason)
    return TaskDropped(reason)
