"""One job between its submission and its end: its lanes, what it waited for, what it is told."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from worker.engine.job import JobResult, Timing
from worker.job_control import JobStopped, Step, Stop

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from worker.engine.image_state import ImageState
    from worker.engine.job import Job, Picture
    from worker.job_control import Control

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class RunningJob:
    """A job that was submitted. Times are seconds on the monotonic clock."""

    number: int
    job: Job
    control: Control
    future: Future[JobResult]
    submitted_s: float = field(default_factory=time.perf_counter)
    load_s: float = 0.0
    admitted_s: float = 0.0
    encoded_s: float = 0.0
    denoised_s: float = 0.0
    lanes: list[ImageState] = field(default_factory=list)
    truncated: tuple[str, ...] = ()
    #: Steps that every picture has done, and of them those that were told.
    told: int = 0
    #: Step of the checkpoint that it went on from, and of the newest that its caller has.
    resumed_from_step: int | None = None
    kept: int = 0
    #: UNet calls that it took part in, and the sum of the jobs in them.
    ticks: int = 0
    companions: int = 0
    #: What its own callback raised.
    broken: BaseException | None = None

    @property
    def steps(self) -> int:
        """Steps that every picture has done."""
        return min((lane.steps for lane in self.lanes), default=0)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to denoise."""
        return all(lane.is_done for lane in self.lanes)

    def begin(self, lanes: list[ImageState]) -> None:
        """Take its new lanes, or those that its checkpoint makes of them."""
        self.lanes = lanes
        if self.job.checkpoint is not None:
            from worker.engine import checkpoint  # noqa: PLC0415  # torch, with the first task only

            if (resumed := checkpoint.resume(self.job.checkpoint, lanes)) is not None:
                self.lanes = resumed
                self.resumed_from_step = self.told = self.kept = self.steps
        self.encoded_s = time.perf_counter()

    def must_end(self) -> BaseException | None:
        """Why it must end before it is done, if it must."""
        if self.broken is not None:
            return self.broken
        reason = self.control.asked()
        return None if reason is None else JobStopped(reason, self.steps)

    def news(self) -> list[Callable[[Callable[[Any, float], str]], None]]:
        """A call for each step that is done and not told yet; it is given what makes previews.

        One more keeps a checkpoint, where it is time for one.
        """
        steps, total = self.steps, self.job.num_inference_steps
        own_steps = steps - (self.resumed_from_step or 0)
        mean_s = (time.perf_counter() - self.encoded_s) / max(1, own_steps)
        calls = []
        for step in range(self.told + 1, steps + 1):
            eta_s = round(mean_s * max(0, total - step), 3)
            calls.append(self._teller(step, total, eta_s))
        every = self.job.checkpoint_every
        if every and steps // every > self.told // every and not self.is_done:
            calls.append(self._keeper())
        self.told = steps
        return calls

    def final_checkpoint(self, reason: BaseException) -> Callable[..., None] | None:
        """A call that keeps a checkpoint, where a job that ends so leaves one."""
        drained = isinstance(reason, JobStopped) and reason.reason is Stop.DRAINED
        if not (drained and self.job.checkpoint_every and self.lanes):
            return None
        return self._keeper()

    def _keeper(self) -> Callable[..., None]:
        """Capture where it stands; the call, beside the engine, makes a file of that.

        Neither raises: a job without its checkpoint is still a job.
        """
        from worker.engine import checkpoint  # noqa: PLC0415  # torch, with the first task only

        try:
            snapshot = checkpoint.capture(self.lanes)
        except Exception as error:  # noqa: BLE001  # see above
            logger.warning("job %s: no checkpoint: %r", self.job.id, error)
            return lambda *_: None

        def keep(*_: object) -> None:
            if self.broken is not None or snapshot.step <= self.kept:
                return
            try:
                self.control.on_checkpoint(snapshot.step, snapshot.serialised())
                self.kept = snapshot.step
            except Exception as error:  # noqa: BLE001  # see above
                logger.warning("job %s: no checkpoint: %r", self.job.id, error)

        return keep

    def _teller(
        self, step: int, total: int, eta_s: float
    ) -> Callable[[Callable[[Any, float], str]], None]:
        every, lane = self.job.preview_every, self.lanes[0]  # it may be ahead of the others
        clean = lane.clean if every and step % every == 0 else None
        alpha = lane.sampling.levels[lane.evaluations - 1].alpha

        def tell(draw: Callable[[Any, float], str]) -> None:
            if self.broken is not None:
                return
            try:
                preview = None if clean is None else draw(clean, alpha)
                self.control.on_step(Step(step, total, eta_s, preview))
            except Exception as error:  # noqa: BLE001  # whatever it is, it ends this job alone
                self.broken = error

        return tell

    def result(self, pictures: list[Picture], versions: dict[str, str]) -> JobResult:
        """What it gives, once its pictures are on the host."""
        timing = Timing(
            wait_s=max(0.0, self.admitted_s - self.submitted_s - self.load_s),
            load_s=self.load_s,
            encode_s=self.encoded_s - self.admitted_s,
            denoise_s=self.denoised_s - self.encoded_s,
            decode_s=time.perf_counter() - self.denoised_s,
        )
        name = self.lanes[0].sampling.name
        batch = round(self.companions / max(1, self.ticks), 2)
        return JobResult(
            tuple(pictures), timing, name, batch, versions, self.truncated, self.resumed_from_step
        )
