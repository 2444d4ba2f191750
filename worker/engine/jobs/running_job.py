"""Runtime state of one submitted job, from `Engine.submit` to the result of its future."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from api_contracts.names import URGENT_PRIORITY
from worker.engine.jobs.job import JobResult
from worker.engine.jobs.stage_log import StageLog
from worker.job_control import JobStopped, Step, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    import torch

    from worker.engine.checkpoint import Snapshot
    from worker.engine.image_state import ImageState
    from worker.engine.jobs.job import GeneratedImage, Job
    from worker.job_control import Control

    #: `Runner.preview`: a data URL from alpha x0 and alpha.
    Preview: TypeAlias = Callable[[torch.Tensor, float], str | None]

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class RunningJob:
    """One job.

    The engine's thread owns it; `error` and `saved_step` are written on the side thread.
    """

    #: Order of submission.
    number: int
    job: Job
    control: Control
    future: Future[JobResult]
    log: StageLog = field(init=False)
    #: Rounds in which younger jobs were admitted before it.
    overtaken_rounds: int = 0
    images: list[ImageState] = field(default_factory=list)
    truncated: tuple[str, ...] = ()
    #: Last step that was reported to the caller.
    reported_steps: int = 0
    resumed_from_step: int | None = None
    #: Step of the last checkpoint that was passed to the caller.
    saved_step: int = 0
    #: What its callback or its sampler raised.
    error: BaseException | None = None

    def __post_init__(self) -> None:
        """Begin the log of its stages, which the control's owner may read."""
        self.log = StageLog(self.number)
        self.control.engine_stages = self.log.stages

    @property
    def priority(self) -> int:
        """0 goes first."""
        return self.job.priority

    @property
    def is_urgent(self) -> bool:
        """Whether it must not wait for others where that can be avoided."""
        return self.priority <= URGENT_PRIORITY

    @property
    def steps(self) -> int:
        """Steps that every image has done."""
        return min((image.steps for image in self.images), default=0)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to denoise."""
        return all(image.is_done for image in self.images)

    def begin(self, images: list[ImageState]) -> None:
        """Start denoising `images`, which are new or resumed from the job's checkpoint."""
        self.images = images
        if self.steps:
            self.resumed_from_step = self.reported_steps = self.saved_step = self.steps
        self.log.encoded_s = time.perf_counter()

    def end_reason(self) -> BaseException | None:
        """Why the job must end now; None to continue."""
        if self.error is not None:
            return self.error
        reason = self.control.asked()
        return None if reason is None else JobStopped(reason, self.steps)

    def reports(self, preview: Preview) -> list[Callable[[], None]]:
        """Calls for the side thread: one for each new step, then a checkpoint where one is due."""
        steps, total = self.steps, self.images[0].sampler.steps
        own_steps = steps - (self.resumed_from_step or 0)
        mean_s = (time.perf_counter() - self.log.encoded_s) / max(1, own_steps)
        calls: list[Callable[[], None]] = []
        for number in range(self.reported_steps + 1, steps + 1):
            step = Step(number, total, round(mean_s * max(0, total - number), 3))
            calls.append(partial(self._report, step, self._draw(number, preview)))
        every = self.job.checkpoint_every
        if every and steps // every > self.reported_steps // every and not self.is_done:
            calls += [save] if (save := self._checkpoint()) else []
        self.reported_steps = steps
        return calls

    def final_checkpoint(self, reason: BaseException) -> Callable[[], None] | None:
        """A call that saves a checkpoint, for a drained job; None for any other `reason`."""
        drained = isinstance(reason, JobStopped) and reason.reason is Stop.DRAINED
        if not (drained and self.job.checkpoint_every and self.images):
            return None
        return self._checkpoint()

    def result(self, images: list[GeneratedImage], versions: dict[str, str]) -> JobResult:
        """The result, once the images are on the host."""
        self.log.end()
        name = self.images[0].sampler.name
        return JobResult(
            tuple(images),
            self.log.timing(),
            name,
            self.log.batch,
            versions,
            self.images[0].unet_dtype,
            self.truncated,
            self.resumed_from_step,
        )

    def _draw(self, step: int, preview: Preview) -> Callable[[], str | None] | None:
        """The call that draws the preview of a step, or None where the step has none.

        It shows the first image, which may be ahead of the others.
        """
        image, every = self.images[0], self.job.preview_every
        if not every or step % every or image.scaled_x0 is None:
            return None
        alpha = image.sampler.levels[image.evaluations - 1].alpha
        return partial(preview, image.scaled_x0, alpha)

    def _report(self, step: Step, draw: Callable[[], str | None] | None) -> None:
        """Call the job's `on_step`. An error of the preview or the callback ends this job alone."""
        if self.error is not None:
            return
        try:
            self.control.on_step(step if draw is None else replace(step, preview=draw()))
        except Exception as error:  # noqa: BLE001  # a callback may raise anything
            self.error = error

    def _checkpoint(self) -> Callable[[], None] | None:
        """The call that saves the current state; None, with a warning, where capturing fails."""
        from worker.engine import checkpoint  # noqa: PLC0415  # imports torch

        try:
            return partial(self._save, checkpoint.capture(self.images))
        except Exception as error:  # noqa: BLE001  # the job continues without a checkpoint
            logger.warning("job %s: checkpoint not saved: %r", self.job.id, error)
            return None

    def _save(self, snapshot: Snapshot) -> None:
        """Pass a checkpoint to the caller, unless it has this step's. Errors are logged."""
        if self.error is not None or snapshot.step <= self.saved_step:
            return
        try:
            self.control.on_checkpoint(snapshot.step, snapshot.to_bytes())
            self.saved_step = snapshot.step
        except Exception as error:  # noqa: BLE001  # the job continues without a checkpoint
            logger.warning("job %s: checkpoint not saved: %r", self.job.id, error)


def call_all(reports: Sequence[Callable[[], None]]) -> None:
    """Make the calls of all jobs of a UNet call in a row, so that they are published together."""
    for report in reports:
        report()
