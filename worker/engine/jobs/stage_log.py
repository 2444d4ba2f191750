"""When the stages of a job in the engine began and ended, and its UNet calls. Imports no torch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from worker.engine.jobs.job import Timing
from worker.engine.jobs.shared_calls import calls_shared
from worker.job_control import Stage

if TYPE_CHECKING:
    from worker.engine.jobs.shared_calls import CallRun


@dataclass(eq=False)
class StageLog:
    """The stages of one job. Times are seconds of `time.perf_counter`, 0 until the stage begins.

    Refers to no job, so that whoever reads it keeps no image. The engine's thread writes it, but
    for `ended_s`, which the side thread may write.
    """

    #: `RunningJob.number`.
    number: int
    submitted_s: float = field(default_factory=time.perf_counter)
    load_s: float = 0.0
    admitted_s: float = 0.0
    encoded_s: float = 0.0
    denoised_s: float = 0.0
    ended_s: float = 0.0
    #: UNet calls that it took part in.
    calls: list[CallRun] = field(default_factory=list)

    @property
    def unet_calls(self) -> int:
        """Number of UNet calls that it took part in."""
        return sum(run.count for run in self.calls)

    @property
    def batch(self) -> float:
        """Mean number of jobs in its UNet calls."""
        jobs_in_calls = sum(run.count * len(run.jobs) for run in self.calls)
        return round(jobs_in_calls / max(1, self.unet_calls), 2)

    def end(self) -> None:
        """Note when the job ended; only the first call counts."""
        self.ended_s = self.ended_s or time.perf_counter()

    def timing(self) -> Timing:
        """The seconds in each phase, of a job that has ended."""
        return Timing(
            wait_s=max(0.0, self.admitted_s - self.submitted_s - self.load_s),
            load_s=self.load_s,
            encode_s=self.encoded_s - self.admitted_s,
            denoise_s=self.denoised_s - self.encoded_s,
            decode_s=self.ended_s - self.denoised_s,
        )

    def stages(self) -> list[Stage]:
        """The stages so far, from any thread; until the job has ended the last one ends now."""
        begins_s = {
            "load": self.load_s and self.admitted_s - self.load_s,
            "encode": self.admitted_s,
            "denoise": self.encoded_s,
            "decode": self.denoised_s,
        }
        begun = [(name, began_s) for name, began_s in begins_s.items() if began_s]
        ends_s = [began_s for _, began_s in begun[1:]] + [self.ended_s or time.perf_counter()]
        stages = [Stage(*each, ended_s) for each, ended_s in zip(begun, ends_s, strict=False)]
        shared = calls_shared(self.calls, self.number)
        return [
            replace(each, unet_calls=self.unet_calls, shared=shared)
            if each.name == "denoise"
            else each
            for each in stages
        ]
