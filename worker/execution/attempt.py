"""One claimed task at work: its files, the engine, and what is told and kept meanwhile."""

from __future__ import annotations

import dataclasses
import logging
import time
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from worker.errors import TaskFailedError
from worker.execution import endings
from worker.execution.company import ExclusiveAttempt
from worker.execution.outcome import Failed, Outcome, Succeeded
from worker.job_control import JobStopped, Stop
from worker.storage import SupersededError

if TYPE_CHECKING:
    from worker.config.settings import Settings
    from worker.engine.engine import Engine
    from worker.engine.job import JobResult
    from worker.execution.artifacts import Artifacts
    from worker.execution.resolved_request import ResolvedRequest
    from worker.job_control import Control, Step
    from worker.record.event_publisher import EventPublisher
    from worker.record.task_record import Claim, TaskRecord

logger = logging.getLogger(__name__)

#: Time between two `loading` events, in seconds.
LOADING_EVERY_S = 1.0


class Attempts:
    """Works on claimed tasks, on as many threads as the worker has slots."""

    def __init__(
        self,
        settings: Settings,
        claims: TaskRecord,
        publisher: EventPublisher,
        engine: Engine,
        shelf: Artifacts,
    ) -> None:
        """All parts connect or start on first use."""
        self._settings, self._claims, self._publisher = settings, claims, publisher
        self._engine, self._shelf = engine, shelf
        self._company = ExclusiveAttempt()

    def work(self, claim: Claim, order: ResolvedRequest, control: Control) -> Outcome:
        """Denoise and store; what nobody foresaw becomes `internal`.

        Raises only what redis-py raises, when Redis stays away: no fault of the task, nor of ours.
        """
        if order.request.deadline_s is not None:
            left_s = claim.submitted_at_s + order.request.deadline_s - claim.claimed_at_s
            control.deadline_s = time.monotonic() + left_s
        control.on_step = lambda step: self._tell_step(claim, order, step)
        control.on_checkpoint = lambda step, state: self._publisher.save_checkpoint(
            claim, step, state
        )
        begun_s = time.monotonic()
        try:
            self._publisher.watch(claim, control)
            made = self._denoise(claim, order, control)
            fields = {"images": len(made.pictures), "metadata": order.request.metadata}
            self._publisher.post(claim, "uploading", fields)
            return Succeeded(
                self._shelf.store(claim, order, made, begun_s, lambda: self._is_ours(claim))
            )
        except JobStopped as stopped:
            return endings.stopped(stopped)
        except SupersededError:
            return endings.stopped(JobStopped(Stop.SUPERSEDED, 0))
        except TaskFailedError as fault:
            return Failed(fault.error)
        except RedisError:
            raise
        except Exception as error:
            logger.exception("task %s failed for a reason that is ours", claim.task_id)
            return Failed(endings.internal(error))
        finally:
            self._publisher.flush(claim)

    def _is_ours(self, claim: Claim) -> bool:
        return self._claims.is_ours(claim)

    def _denoise(self, claim: Claim, order: ResolvedRequest, control: Control) -> JobResult:
        """Wait for the engine, and tell the caller while it builds its pipeline."""
        control.obey(0)
        job = dataclasses.replace(
            self._shelf.fetch(order),
            checkpoint_every=self._settings.checkpoint_every,
            checkpoint=self._claims.load_checkpoint(claim.task_id)
            if claim.checkpoint_step
            else None,
        )
        last = 1 < claim.attempt >= self._settings.max_attempts
        with self._company.join(control, alone=last):
            future = self._engine.submit(job, control)
            while True:
                try:
                    return future.result(timeout=LOADING_EVERY_S)
                except FutureTimeout:
                    if future.done():
                        return future.result()
                    if control.asked() is not None and future.cancel():
                        control.obey(0)  # it had not begun
                    self._tell_loading(claim, order)

    def _tell_loading(self, claim: Claim, order: ResolvedRequest) -> None:
        if (seconds := self._engine.loading_s) is not None:
            fields = {"seconds_so_far": round(seconds, 3), "metadata": order.request.metadata}
            self._publisher.post(claim, "loading", fields)

    def _tell_step(self, claim: Claim, order: ResolvedRequest, step: Step) -> None:
        last = step.step == step.total_steps
        if not last and step.preview is None and step.step % order.request.callback_steps:
            return
        fields = {
            "step": step.step,
            "total_steps": step.total_steps,
            "eta_s": step.eta_s,
            "preview": step.preview,
            "metadata": order.request.metadata,
        }
        self._publisher.post(claim, "progress", fields)
