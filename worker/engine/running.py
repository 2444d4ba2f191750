"""One job between its submission and its end: its lanes, what it waited for, what it is told."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from worker.engine.job import JobResult, JobStopped, Step, Timing

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from worker.engine.job import Control, Job, Picture
    from worker.engine.lane import Lane


@dataclass(eq=False)
class Running:
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
    lanes: list[Lane] = field(default_factory=list)
    truncated: tuple[str, ...] = ()
    #: Steps that every picture has done, and of them those that were told.
    told: int = 0
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

    def must_end(self) -> BaseException | None:
        """Why it must end before it is done, if it must."""
        if self.broken is not None:
            return self.broken
        reason = self.control.asked()
        return None if reason is None else JobStopped(reason, self.steps)

    def news(self) -> list[Callable[[Callable[[Any, float], str]], None]]:
        """A call for each step that is done and not told yet; it is given what makes previews."""
        steps, total = self.steps, self.job.num_inference_steps
        mean_s = (time.perf_counter() - self.encoded_s) / max(1, steps)
        calls = []
        for step in range(self.told + 1, steps + 1):
            eta_s = round(mean_s * max(0, total - step), 3)
            calls.append(self._teller(step, total, eta_s))
        self.told = steps
        return calls

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
        return JobResult(tuple(pictures), timing, name, batch, versions, self.truncated)
