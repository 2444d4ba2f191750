"""One attempt at a claimed task: fetch its inputs, denoise, upload. Publishes its events."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures import wait
from contextlib import contextmanager
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from worker import metrics
from worker.errors import ModelLoadError, TaskFailedError
from worker.execution.outcome import (
    Outcome,
    TaskFailed,
    TaskSucceeded,
    from_stop,
    internal_error,
)
from worker.job_control import STOP_CHECK_PERIOD_S, JobStopped, Stop
from worker.storage import SupersededError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.config.settings import Settings
    from worker.engine.engine import Engine
    from worker.engine.jobs.job import JobResult
    from worker.execution.artifacts import Artifacts
    from worker.execution.resolved_request import ResolvedRequest
    from worker.job_control import Control, Step
    from worker.record.claim import Claim
    from worker.record.event_publisher import EventPublisher
    from worker.record.task_record import TaskRecord

logger = logging.getLogger(__name__)

#: Time between two `loading` events, in seconds.
LOADING_EVENT_PERIOD_S = 1.0


class AttemptRunner:
    """Runs attempts, on as many threads as the worker has slots."""

    def __init__(
        self,
        settings: Settings,
        record: TaskRecord,
        publisher: EventPublisher,
        engine: Engine,
        artifacts: Artifacts,
    ) -> None:
        """All parts connect or start on first use."""
        self._settings, self._record, self._publisher = settings, record, publisher
        self._engine, self._artifacts = engine, artifacts
        self._exclusive = ExclusiveAttempt()

    def run(self, claim: Claim, resolved: ResolvedRequest, control: Control) -> Outcome:
        """Denoise and store; an unexpected exception becomes the error code `internal`.

        Raises only redis-py's exceptions, when Redis stays unavailable: that is no failure of the
        task or of the worker.
        """
        if resolved.request.deadline_s is not None:
            left_s = claim.submitted_at_s + resolved.request.deadline_s - claim.claimed_at_s
            control.deadline_s = time.monotonic() + left_s
        began_s = time.monotonic()

        def on_step(step: Step) -> None:
            if step.step == claim.attempt == 1:
                metrics.FIRST_STEP_S.observe(claim.queued_s + time.monotonic() - began_s)
            self._publish_step(claim, resolved, step)

        control.on_step = on_step
        control.on_checkpoint = lambda *saved: self._publisher.save_checkpoint(claim, *saved)
        try:
            self._publisher.watch(claim, control)
            output = self._denoise(claim, resolved, control)
            fields = {"images": len(output.images), "metadata": resolved.request.metadata}
            self._publisher.post(claim, "uploading", fields)
            is_current = lambda: self._record.is_current(claim)  # noqa: E731  # asked before each write
            with control.stage("upload"):
                return TaskSucceeded(
                    self._artifacts.store(claim, resolved, output, began_s, is_current)
                )
        except JobStopped as stop:
            return from_stop(stop)
        except SupersededError:
            return from_stop(JobStopped(Stop.SUPERSEDED, 0))
        except TaskFailedError as error:
            return TaskFailed(error.error, error.shared_fault, error.may_be_of_process)
        except RedisError:
            raise
        except Exception as error:
            logger.exception("task %s failed because of a bug in the worker", claim.task_id)
            return TaskFailed(internal_error(error))
        finally:
            self._publisher.flush(claim)

    def _denoise(self, claim: Claim, resolved: ResolvedRequest, control: Control) -> JobResult:
        """Run the job in the engine; publish `loading` events while a model loads."""
        control.obey(0)
        self._download(claim, resolved, control)
        has_checkpoint = claim.checkpoint_step > 0
        job = dataclasses.replace(
            self._artifacts.fetch(resolved, control),
            checkpoint_every=self._settings.checkpoint_every,
            checkpoint=self._record.load_checkpoint(claim.task_id) if has_checkpoint else None,
        )
        is_last = 1 < claim.attempt >= self._settings.max_attempts
        with self._exclusive.enter(control, alone=is_last):
            future = self._engine.submit(job, control)
            while True:
                try:
                    return future.result(timeout=LOADING_EVENT_PERIOD_S)
                except FutureTimeout:
                    if future.done():
                        return future.result()
                    if control.asked() is not None and future.cancel():
                        control.obey(0)  # it was still queued in the engine
                    self._publish_loading(claim, resolved)

    def _download(self, claim: Claim, resolved: ResolvedRequest, control: Control) -> None:
        """Wait for the model's files; raises `ModelLoadError` after `SAG_LOAD_TIMEOUT_S`.

        Beside all other tasks, also on the last attempt: a download kills no process.
        """
        model, limit_s = resolved.request.model, self._settings.load_timeout_s
        until_s = time.monotonic() + limit_s
        while not (download := self._engine.download(model)).done():
            wait([download], LOADING_EVENT_PERIOD_S)
            if download.done():
                break
            control.obey(0)
            if time.monotonic() > until_s:
                error = ModelLoadError(
                    f"the download of model {model!r} takes longer than {limit_s:g} s"
                    " (SAG_LOAD_TIMEOUT_S); it goes on, and the next attempt waits for it"
                )
                error.shared_fault = f"download of {model}"
                raise error
            self._publish_loading(claim, resolved)
        download.result()

    def _publish_loading(self, claim: Claim, resolved: ResolvedRequest) -> None:
        if (seconds := self._engine.loading_s(resolved.request.model)) is not None:
            fields = {"seconds_so_far": round(seconds, 3), "metadata": resolved.request.metadata}
            self._publisher.post(claim, "loading", fields)

    def _publish_step(self, claim: Claim, resolved: ResolvedRequest, step: Step) -> None:
        is_last = step.step == step.total_steps
        if not is_last and step.preview is None and step.step % resolved.request.callback_steps:
            return
        fields = {
            "step": step.step,
            "total_steps": step.total_steps,
            "eta_s": step.eta_s,
            "preview": step.preview,
            "metadata": resolved.request.metadata,
        }
        self._publisher.post(claim, "progress", fields)


class ExclusiveAttempt:
    """Lets a task on its last attempt denoise alone.

    A task that kills its process costs every task of the process an attempt. Alone on its last
    attempt it can't use up those of others, and others on their last attempt are not affected by
    it. Only counts tasks; `ActiveTasks` has them.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running, self._waiting_alone, self._is_alone = 0, 0, False

    @contextmanager
    def enter(self, control: Control, *, alone: bool) -> Iterator[None]:
        """Denoise beside others, or alone; raises `JobStopped` when stopped while it waits."""
        with self._changed:
            self._waiting_alone += alone
            try:
                while not self._may_enter(alone=alone):
                    control.obey(0)
                    self._changed.wait(STOP_CHECK_PERIOD_S)
            finally:
                self._waiting_alone -= alone
                self._changed.notify_all()
            self._running += 1
            self._is_alone = alone
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._is_alone = False
                self._changed.notify_all()

    def _may_enter(self, *, alone: bool) -> bool:
        if alone:
            return self._running == 0
        return not self._is_alone and self._waiting_alone == 0
