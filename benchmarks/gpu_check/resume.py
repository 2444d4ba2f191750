"""Part: a job that is stopped in one process and resumed in another gives the same bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu_check import given
from benchmarks.gpu_check.rounds import Rounds
from worker.config.models import SHIPPED_MODEL, ModelSpec
from worker.job_control import Control, JobStopped, Stop

if TYPE_CHECKING:
    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting
    from worker.engine.jobs.job import Job, JobResult

TINY = "tiny-shapes"
#: On the bundled model; the model of Stable Diffusion 1.5's size runs the first alone.
SAMPLERS = ("ddim", "dpmpp_2m_sde", "unipc", "heun", "euler_a", "pndm")
STEPS = 8
#: Rounds before the drain: two a step, so about half of the steps.
ROUNDS = 9
#: Rows of a call: nothing is measured here.
ROWS = 8
FIRST_S = 50.0


@dataclass(frozen=True)
class Left:
    """What the first process leaves of one job."""

    sampler: str
    #: Digest of the latents of the job left alone, and of the same job once more.
    whole: str
    again: str
    step: int
    checkpoint: bytes


def run(setting: Setting, found: Finding) -> None:
    """The first process is forked from this one before it has used CUDA."""
    file = Path(setting.folder) / "left.pickle"
    first = multiprocessing.get_context("fork").Process(target=_first, args=(setting, file))
    first.start()
    first.join(FIRST_S)
    if first.exitcode != 0:
        first.kill()
        message = f"the first process ended with exit status {first.exitcode}"
        raise RuntimeError(message)
    left: dict[str, list[Left]] = pickle.loads(file.read_bytes())  # noqa: S301  # written above
    same = total = 0
    for name, spec in _specs(setting).items():
        rounds = Rounds(spec, setting.device, ROWS)
        for each in left[name]:
            resumed = dataclasses.replace(
                _job(setting, name, each.sampler), checkpoint=each.checkpoint
            )
            (result,) = rounds.results([resumed])
            is_same = _digest(result) == each.whole
            total, same = total + 1, same + is_same
            found.row(
                model=name,
                sampler=each.sampler,
                stopped_at=each.step,
                resumed_from=result.resumed_from_step,
                same_bytes="yes" if is_same else "no",
                same_bytes_alone_twice="yes" if each.again == each.whole else "no",
            )
            found.check(
                f"{name}, {each.sampler}: it went on from the checkpoint",
                holds=result.resumed_from_step == each.step > 0,
            )
    found.check("every resumed job gave the same bytes", holds=same == total)
    found.headline(f"{same} of {total} jobs gave the same bytes in another process.")


def _first(setting: Setting, file: Path) -> None:
    """Each job alone, once more, and drained; what is left goes to a file."""
    left = {}
    for name, spec in _specs(setting).items():
        rounds = Rounds(spec, setting.device, ROWS)
        samplers = (
            SAMPLERS[: len(SAMPLERS) if setting.on_gpu else 3] if name == TINY else SAMPLERS[:1]
        )
        left[name] = [_leave(rounds, _job(setting, name, sampler)) for sampler in samplers]
    file.write_bytes(pickle.dumps(left))


def _leave(rounds: Rounds, job: Job) -> Left:
    (whole,), (again,) = rounds.results([job]), rounds.results([job])
    kept: dict[int, bytes] = {}
    control = Control(on_checkpoint=kept.__setitem__)
    future = rounds.submit(dataclasses.replace(job, checkpoint_every=1000), control)
    for _ in range(ROUNDS):
        rounds.step()
    control.request(Stop.DRAINED)
    while rounds.step():
        pass
    assert isinstance(future.exception(timeout=0), JobStopped)
    ((step, checkpoint),) = kept.items()
    return Left(job.scheduler or "", _digest(whole), _digest(again), step, checkpoint)


def _specs(setting: Setting) -> dict[str, ModelSpec]:
    return {
        TINY: ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False),
        "Stable Diffusion 1.5's size": setting.sd15().spec,
    }


def _job(setting: Setting, model: str, sampler: str) -> Job:
    (task,) = given.make(setting, 1, STEPS)
    job = dataclasses.replace(task.job(), scheduler=sampler, output_type="latent")
    return job if model != TINY else dataclasses.replace(job, height=None, width=None)


def _digest(result: JobResult) -> str:
    return hashlib.sha256(result.images[0].pixels.numpy().tobytes()).hexdigest()
