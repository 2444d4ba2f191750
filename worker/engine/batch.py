"""The jobs that share a device, and the round in which each of them gets on by one call.

Not thread-safe: the engine's thread owns it. What waits for the device (previews, pictures, the
callers' own callbacks) is handed over to be done beside it.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from worker.engine import batch_scheduler, device_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.engine.image_state import ImageState
    from worker.engine.model_cache import ModelCache
    from worker.engine.prepare import PreparedJob
    from worker.engine.runner import Runner
    from worker.engine.running_job import RunningJob

logger = logging.getLogger(__name__)

#: Something of a job, which stands first in it.
_Part = TypeVar("_Part", bound="tuple[RunningJob, *tuple[Any, ...]]")


class Batch:
    """Jobs come and go at step boundaries."""

    def __init__(self, runners: ModelCache, side_executor: Callable[..., object]) -> None:
        """`side_executor` runs a function with its arguments on another thread, in order."""
        self._runners, self._side_executor = runners, side_executor
        self._waiting: list[RunningJob] = []
        self._active: list[RunningJob] = []
        self._denoised: list[RunningJob] = []
        #: Every job that has begun and not ended, wherever it is.
        self._begun: set[RunningJob] = set()
        self._scheduler, self._decode_waited_ticks = batch_scheduler.Scheduler(), 0

    @property
    def is_busy(self) -> bool:
        """Whether a round would do anything."""
        return bool(self._waiting or self._active or self._denoised)

    def add(self, running: RunningJob) -> None:
        """Let a job wait for the next round."""
        self._waiting.append(running)

    def step(self) -> bool:
        """Who leaves, who comes, one UNet call, what is decoded; gives whether more is left."""
        was_busy = self.is_busy
        self._leave()
        self._admit()
        ticked = self._tick()
        self._decode(ticked=ticked)
        if was_busy and not self.is_busy:
            self._runners.rest()
        return self.is_busy

    def abandon(self, error: BaseException) -> None:
        """Fail every job that has begun: what they have in common is broken."""
        fault = device_errors.fault_of(error)
        for running in list(self._begun):
            own = RuntimeError(f"a round of the engine failed: {fault!r}")
            own.__cause__ = fault
            self._fail(running, own)

    def _leave(self) -> None:
        """Take out the jobs that were stopped, or whose own callback broke."""
        self._waiting = [each for each in self._waiting if not each.future.cancelled()]
        for running in (*self._waiting, *self._active, *self._denoised):
            if (reason := running.must_end()) is None:
                continue
            if (final_checkpoint := running.final_checkpoint(reason)) is None:
                self._fail(running, reason)
            else:
                self._take_out(running)
                self._side_executor(self._part, running, final_checkpoint, reason)

    def _admit(self) -> None:
        """Let jobs in, in their order; their texts are encoded together."""
        busy = {running.job.model for running in self._active + self._denoised}
        wanted = [running.job.model for running in self._waiting]
        number = batch_scheduler.admit(wanted, busy, self._runners.capacity)
        admitted, self._waiting = self._waiting[:number], self._waiting[number:]
        drafts: dict[str, list[tuple[RunningJob, PreparedJob]]] = {}
        for running in admitted:
            if not running.future.set_running_or_notify_cancel():
                continue
            self._begun.add(running)
            try:
                runner = self._runners.get(running.job.model, busy)
                busy.add(running.job.model)
                running.load_s = self._runners.build_s(running.job.model, running.submitted_s)
                running.admitted_s = time.perf_counter()
                draft = runner.draft(running.job)
            except BaseException as error:  # noqa: BLE001  # without this thread no job ends
                self._fail(running, error)
            else:
                running.truncated = draft.truncated
                drafts.setdefault(running.job.model, []).append((running, draft))
        for some in drafts.values():
            self._together(some, self._encode)

    def _encode(self, some: Sequence[tuple[RunningJob, PreparedJob]]) -> None:
        together = self._runners.get(some[0][0].job.model).encode([draft for _, draft in some])
        for (running, _), lanes in zip(some, together, strict=True):
            running.begin(lanes)
            self._active.append(running)

    def _tick(self) -> bool:
        """One UNet call for as many pictures as it takes; False where none is left to denoise."""
        candidates = {
            batch_scheduler.Candidate(
                running.number, picture, lane.bucket, lane.rows, fresh=lane.steps == 0
            ): (running, lane)
            for running in self._active
            for picture, lane in enumerate(running.lanes)
            if not lane.is_done
        }
        plan = self._scheduler.plan(list(candidates), self._limit)
        self._together([candidates[each] for each in plan], self._call)
        if plan:
            self._runners.get(plan[0].bucket.model).network.pace()
        for running in [running for running in self._active if running.is_done]:
            running.denoised_s = time.perf_counter()
            self._active.remove(running)
            self._denoised.append(running)
        return bool(plan)

    def _limit(self, bucket: batch_scheduler.Bucket) -> int:
        return self._runners.get(bucket.model).network.capacity.limit(bucket.height, bucket.width)

    def _call(self, some: Sequence[tuple[RunningJob, ImageState]]) -> None:
        runner = self._runners.get(some[0][0].job.model)
        of = {id(lane): running for running, lane in some}
        jobs = list(dict.fromkeys(of.values()))
        for advance in runner.tick([lane for _, lane in some]):
            try:
                advance.lane.advance(advance.output, advance.noisy)
            except Exception as error:  # noqa: BLE001  # a sampler that breaks ends its own job
                of[id(advance.lane)].broken = error
        for running in jobs:
            running.ticks += 1
            running.companions += len(jobs)
            for tell in running.news():
                self._side_executor(tell, runner.preview)

    def _decode(self, *, ticked: bool) -> None:
        """Decode what is denoised, when it is due, and let the pictures be finished beside."""
        if not self._denoised:
            self._decode_waited_ticks = 0
            return
        self._decode_waited_ticks += ticked
        runners = {each.job.model: self._runners.get(each.job.model) for each in self._denoised}
        if batch_scheduler.decode_due(
            sum(len(each.lanes) for each in self._denoised),
            self._decode_waited_ticks,
            running=bool(self._active),
            moves=any(runner.moves for runner in runners.values()),
        ):
            due, self._denoised, self._decode_waited_ticks = self._denoised, [], 0
            for model in runners:
                some = [(running,) for running in due if running.job.model == model]
                self._together(some, self._decode_some)

    def _decode_some(self, some: Sequence[tuple[RunningJob]]) -> None:
        runner = self._runners.get(some[0][0].job.model)
        decoded = iter(runner.decode([lane for (running,) in some for lane in running.lanes]))
        for (running,) in some:
            own = [next(decoded) for _ in running.lanes]
            self._side_executor(self._finish, runner, running, own)

    def _finish(self, runner: Runner, running: RunningJob, decoded: Sequence[Any]) -> None:
        """Give the job its pictures. Runs beside the engine, after all that it was told."""
        self._begun.discard(running)  # or its pictures would be kept here until the next round
        error = running.broken
        if error is None:
            try:
                pictures = runner.finish(running.lanes, decoded)
                result = running.result(pictures, runner.versions)
                running.lanes.clear()  # or they wait on the device until their job is forgotten
                running.future.set_result(result)
            except BaseException as raised:  # noqa: BLE001  # without its future the job never ends
                error = raised
        if error is not None:
            running.future.set_exception(device_errors.fault_of(error))

    def _together(self, some: Sequence[_Part], call: Callable[[Sequence[_Part]], None]) -> None:
        """Do `call` for parts of many jobs; where that fails, for half of them at a time.

        So only a job that fails alone fails. A call that raises must have changed nothing.
        """
        some = [part for part in some if not part[0].future.done()]
        if not some:
            return
        try:
            call(some)
            return
        except BaseException as error:  # noqa: BLE001  # without this thread no job ends
            jobs = {part[0] for part in some}
            if len(some) == 1 or (len(jobs) == 1 and not device_errors.is_out_of_memory(error)):
                self._fail(some[0][0], error)
                return
            device_errors.leave_a_failed_device(error)
            logger.warning("a call for %d jobs failed, so halves of it: %r", len(jobs), error)
            device_errors.forget_frames(error)
        self._runners.free_memory()
        half = len(some) // 2
        self._together(some[:half], call)
        self._together(some[half:], call)

    def _part(
        self, running: RunningJob, final_checkpoint: Callable[[], None], reason: BaseException
    ) -> None:
        """End a job that was stopped, after what it leaves. Runs beside the engine."""
        try:
            final_checkpoint()
        finally:  # without its future the job never ends
            _set_exception(running, reason)

    def _take_out(self, running: RunningJob) -> None:
        for jobs in (self._waiting, self._active, self._denoised):
            if running in jobs:
                jobs.remove(running)
        self._begun.discard(running)
        running.lanes.clear()

    def _fail(self, running: RunningJob, error: BaseException) -> None:
        self._take_out(running)
        _set_exception(running, error)


def _set_exception(running: RunningJob, error: BaseException) -> None:
    fault = device_errors.fault_of(error)
    with suppress(InvalidStateError):  # it was cancelled: nobody waits for it
        running.future.set_exception(fault)
