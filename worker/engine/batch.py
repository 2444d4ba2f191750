"""The jobs that share a device, and the round that advances them by one UNet call.

Not thread-safe: the engine's thread owns it. Work that waits for the device (previews, callbacks,
finished images) goes to the side executor.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from worker import metrics
from worker.engine import batch_scheduler, ending
from worker.engine.device import device_errors
from worker.engine.running_job import call_all
from worker.engine.shared_calls import CallCounter
from worker.engine.waiting_jobs import WaitingJobs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.engine.image_state import ImageState
    from worker.engine.model_cache import ModelCache
    from worker.engine.prepare import PreparedJob
    from worker.engine.running_job import RunningJob

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class Batch:
    """Jobs that are denoised together. They join and leave between two UNet calls."""

    def __init__(self, runners: ModelCache, side_executor: Callable[..., object]) -> None:
        """`side_executor` runs a function with its arguments on another thread, in order."""
        self._runners, self._side_executor = runners, side_executor
        self._waiting = WaitingJobs()
        self._active: list[RunningJob] = []
        self._denoised: list[RunningJob] = []
        #: All admitted jobs without an outcome yet, also those in none of the lists above.
        self._unfinished: set[RunningJob] = set()
        self._scheduler, self._decode_waited_rounds = batch_scheduler.Scheduler(), 0
        self._calls = CallCounter()

    @property
    def is_busy(self) -> bool:
        """Whether the next round has something to do."""
        return bool(self._waiting.jobs or self._active or self._denoised)

    def add(self, running: RunningJob) -> None:
        """Queue a job for the next round."""
        self._waiting.add(running)

    def step(self) -> bool:
        """Run a round: stop and admit jobs, make one UNet call, decode. Returns `is_busy`."""
        was_busy = self.is_busy
        self._stop_jobs()
        self._admit()
        called = self._denoise()
        self._decode(called=called)
        if was_busy and not self.is_busy:
            self._runners.offload_idle()
        return self.is_busy

    def abandon(self, error: BaseException) -> None:
        """Fail all unfinished jobs, because a round raised `error`."""
        cause = device_errors.job_error(error)
        for running in list(self._unfinished):
            failure = RuntimeError(f"a round of the engine failed: {cause!r}")
            failure.__cause__ = cause
            self._fail(running, failure)

    def _stop_jobs(self) -> None:
        """Remove the jobs that must end now: stopped, expired, or with an error of their own."""
        self._waiting.remove_cancelled()
        for running in (*self._waiting.jobs, *self._active, *self._denoised):
            if (reason := running.end_reason()) is None:
                continue
            if (final_checkpoint := running.final_checkpoint(reason)) is None:
                self._fail(running, reason)
            else:
                self._remove(running)
                self._side_executor(ending.finish_stopped, running, final_checkpoint, reason)

    def _admit(self) -> None:
        """Start waiting jobs: encode their prompts together, and the picture of one of them."""
        busy = {running.job.model for running in self._active + self._denoised}
        budget = batch_scheduler.AdapterBudget(self._runners.max_adapters)
        for running in self._active:
            budget.use(running.job.model, running.job.adapter_names)
        admitted = self._waiting.take(
            busy, self._runners.capacity, self._runners.has_adapters, budget
        )
        by_model: dict[str, list[tuple[RunningJob, PreparedJob]]] = {}
        for running in admitted:
            if not running.future.set_running_or_notify_cancel():
                continue
            self._unfinished.add(running)
            try:
                prepared = self._prepare(running, busy, budget)
            except BaseException as error:  # noqa: BLE001  # without this thread no job ends
                self._fail(running, error)
            else:
                by_model.setdefault(running.job.model, []).append((running, prepared))
        for parts in by_model.values():
            self._call_or_halve(parts, self._encode)

    def _prepare(
        self, running: RunningJob, busy: set[str], budget: batch_scheduler.AdapterBudget
    ) -> PreparedJob:
        """Load the job's model if needed, validate the job against it, load its adapters."""
        model, names = running.job.model, running.job.adapter_names
        runner = self._runners.get(model, busy)
        busy.add(model)
        running.log.load_s = self._runners.load_wait_s(model, running.log.submitted_s)
        prepared = runner.check(running.job)
        running.truncated = prepared.truncated
        running.log.load_s += self._runners.load_adapters(model, names, budget.used(model))
        running.log.admitted_s = time.perf_counter()
        return prepared

    def _encode(self, parts: Sequence[tuple[RunningJob, PreparedJob]]) -> None:
        runner = self._runners.get(parts[0][0].job.model)
        encoded = runner.encode([prepared for _, prepared in parts])
        for (running, _), images in zip(parts, encoded, strict=True):
            running.begin(images)
            self._active.append(running)

    def _denoise(self) -> bool:
        """Make one UNet call for as many images as fit; returns whether a call was made."""
        candidates = {
            batch_scheduler.Candidate(
                running.number, index, image.bucket, image.rows, image.steps == 0, running.priority
            ): (running, image)
            for running in self._active
            for index, image in enumerate(running.images)
            if not image.is_done
        }
        plan = self._scheduler.plan(list(candidates), self._limit_rows)
        began_s = time.perf_counter()
        self._call_or_halve([candidates[each] for each in plan], self._evaluate)
        if plan:
            self._runners.get(plan[0].bucket.model).unet.pace()
            metrics.STEP_S.observe(time.perf_counter() - began_s)
            metrics.ROWS.observe(sum(each.rows for each in plan))
        for running in [running for running in self._active if running.is_done]:
            running.log.denoised_s = time.perf_counter()
            self._active.remove(running)
            self._denoised.append(running)
        return bool(plan)

    def _limit_rows(self, bucket: batch_scheduler.Bucket) -> int:
        if not self._runners.is_measured(bucket.model):
            # Previews and pictures on the side thread would disturb the measurement.
            if isinstance(done := self._side_executor(ending.nothing), Future):
                done.result()
            self._runners.measure(bucket.model)
        return self._runners.get(bucket.model).unet.capacity.limit(bucket.height, bucket.width)

    def _evaluate(self, parts: Sequence[tuple[RunningJob, ImageState]]) -> None:
        runner = self._runners.get(parts[0][0].job.model)
        job_of = {image: running for running, image in parts}
        jobs = list(dict.fromkeys(job_of.values()))
        for each in runner.evaluate(list(job_of)):
            try:
                each.image.step(each.output, each.noisy, each.variance)
            except Exception as error:  # noqa: BLE001  # an error of a sampler ends its job alone
                job_of[each.image].error = error
        self._calls.count(jobs)
        reports: list[Callable[[], None]] = []
        for running in jobs:
            reports += running.reports(runner.preview)
        self._side_executor(call_all, reports)

    def _decode(self, *, called: bool) -> None:
        """Decode the denoised images when due, and finish their jobs on the side thread."""
        if not self._denoised:
            self._decode_waited_rounds = 0
            return
        self._decode_waited_rounds += called
        runners = {each.job.model: self._runners.get(each.job.model) for each in self._denoised}
        if batch_scheduler.decode_due(
            sum(len(each.images) for each in self._denoised),
            self._decode_waited_rounds,
            running=bool(self._active),
            moves_unet=any(runner.decode_moves_unet for runner in runners.values()),
            urgent=any(each.is_urgent for each in self._denoised),
        ):
            due, self._denoised, self._decode_waited_rounds = self._denoised, [], 0
            for model in runners:
                parts = [(each, each.images) for each in due if each.job.model == model]
                self._call_or_halve(parts, self._decode_jobs)

    def _decode_jobs(self, parts: Sequence[tuple[RunningJob, list[ImageState]]]) -> None:
        runner = self._runners.get(parts[0][0].job.model)
        decoded = iter(runner.decode([image for _, images in parts for image in images]))
        for running, images in parts:
            self._unfinished.discard(running)
            self._side_executor(ending.finish, runner, running, [next(decoded) for _ in images])

    def _call_or_halve(
        self,
        parts: Sequence[tuple[RunningJob, _T]],
        call: Callable[[Sequence[tuple[RunningJob, _T]]], None],
    ) -> None:
        """Call `call` with parts of many jobs; if it fails, with each half of them, and so on.

        Only a job whose own call fails is failed. A `call` that raises must have changed nothing.
        """
        groups, made_room = [parts], False
        while groups:
            group = [part for part in groups.pop() if not part[0].future.done()]
            if not group:
                continue
            try:
                call(group)
            except BaseException as error:  # noqa: BLE001  # without this thread no job ends
                jobs = {running for running, _ in group}
                no_memory = device_errors.is_out_of_memory(error)
                may_fit = no_memory and self._runners.offloads and not made_room
                if not may_fit and (len(group) == 1 or (len(jobs) == 1 and not no_memory)):
                    self._fail(group[0][0], error)
                    continue
                device_errors.exit_if_device_failed(error)
                logger.warning("call for %d jobs failed, retrying in halves: %r", len(jobs), error)
                device_errors.clear_frames(error)
            else:
                continue
            self._runners.make_room()  # outside of the handler, which keeps `error` alive
            made_room, half = True, (len(group) + 1) // 2
            groups += [group[half:], group[:half]]

    def _remove(self, running: RunningJob) -> None:
        for jobs in (self._waiting.jobs, self._active, self._denoised):
            if running in jobs:
                jobs.remove(running)
        self._unfinished.discard(running)
        running.images.clear()

    def _fail(self, running: RunningJob, error: BaseException) -> None:
        self._remove(running)
        ending.fail(running, error)
