"""Tasks that arrive while others run, through the engine's own rounds."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from api_contracts.request import ETA_SCHEDULERS
from worker.config.models import SHIPPED_MODEL, Adapter, ModelSpec
from worker.engine.batch import Batch
from worker.engine.job import Job
from worker.engine.model_cache import ModelCache
from worker.engine.running_job import RunningJob
from worker.job_control import Control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from worker.engine.job import JobResult
    from worker.engine.loaded_model import LoadedModel
    from worker.engine.runner import Runner


@dataclass(frozen=True)
class Arrival:
    """A job, and the round before which it arrives."""

    round: int
    job: Job


def job(number: int, scheduler: str, **changes: Any) -> Job:  # noqa: ANN401  # any field's
    """Job number `number` with `changes`."""
    given: dict[str, Any] = {
        "id": f"{number}-{scheduler}",
        "model": "default",
        "prompts": (f"star number {number}",),
        "negative_prompts": (),
        "height": None,
        "width": None,
        "num_inference_steps": 6,
        "guidance_scale": 7.5,
        "sag_scale": 0.75,
        "num_images_per_prompt": 1,
        "eta": 0.0,
        "seeds": (number,),
        "max_images": 4,
        "max_side_px": 2048,
        "scheduler": scheduler,
        "output_type": "pil",
    }
    return Job(**(given | changes))


class Rounds:
    """The engine over one model, without threads: the side thread's work follows each round."""

    def __init__(
        self,
        load: Callable[[], LoadedModel],
        max_batch_rows: int | None,
        subject: Mapping[str, Any] | None = None,
        adapters: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """`subject` are fields of every job, in place of its prompts; `adapters` LoRA files."""
        self._subject = subject or {}
        files = {name: Adapter(path=str(path)) for name, path in adapters.items()}
        self.spec = ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False, adapters=files)
        self._runners = ModelCache({"default": self.spec}, lambda _: load(), 1, max_batch_rows)
        self._side: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._batch = Batch(self._runners, lambda call, *args: self._side.append((call, args)))
        self._number = 0
        self.futures: dict[str, Future[JobResult]] = {}
        #: The last checkpoint of each job.
        self.checkpoints: dict[str, bytes] = {}

    @property
    def runner(self) -> Runner:
        """Of the model; loads it."""
        return self._runners.get("default")

    def close(self) -> None:
        """Load the model if it is not, and drop it."""
        self.runner.close()
        self._runners.clear()

    def run(self, arrivals: Iterable[Arrival], rounds: int = 200) -> None:
        """Run until no job is left, at most so many rounds."""
        coming = sorted(arrivals, key=lambda each: each.round)
        for number in range(rounds):
            while coming and coming[0].round <= number:
                self._submit(coming.pop(0).job)
            is_busy = self._batch.step()
            side, self._side[:] = list(self._side), []
            for call, args in side:
                call(*args)
            if not is_busy and not coming:
                return

    def errors(self) -> list[str]:
        """What the jobs failed with."""
        failed = ((name, each.exception(0)) for name, each in self.futures.items() if each.done())
        return [f"job {name}: {error!r}" for name, error in failed if error is not None]

    def _submit(self, wanted: Job) -> None:
        self._number += 1
        wanted = replace(wanted, **self._subject)
        future: Future[JobResult] = Future()
        self.futures[wanted.id] = future
        control = Control(
            on_checkpoint=lambda _, state: self.checkpoints.update({wanted.id: state})
        )
        self._batch.add(RunningJob(self._number, wanted, control, future))


def mixed(names: Sequence[str], steps: int, other_px: tuple[int, int]) -> list[Arrival]:
    """Each sampler once: with and without SAG and classifier-free guidance, sizes and previews.

    Every third has the size `other_px`, height and width. Each saves a checkpoint two steps before
    its end.
    """
    sizes = ((None, None), (None, None), other_px)
    arrivals = []
    for number, name in enumerate(names):
        height, width = sizes[number % len(sizes)]
        changes: dict[str, Any] = {"height": height, "width": width}
        changes["sag_scale"] = 0.0 if number % 4 == 3 else 0.75  # noqa: PLR2004  # every fourth
        changes["guidance_scale"] = 1.0 if number % 5 == 4 else 7.5  # noqa: PLR2004  # every fifth
        changes["preview_every"] = 3 if number % 6 == 0 else 0
        changes["output_type"] = ("pil", "npy", "latent")[number % 3]
        changes |= {"num_inference_steps": steps, "checkpoint_every": steps - 2}
        changes["eta"] = 0.5 if name in ETA_SCHEDULERS else 0.0
        arrivals.append(Arrival(number % 7, job(number, name, **changes)))
    return arrivals


def resumed(arrivals: Iterable[Arrival], checkpoints: dict[str, bytes]) -> list[Arrival]:
    """The same jobs, each from its last checkpoint."""
    return [
        Arrival(
            0, replace(each.job, id=f"{each.job.id} resumed", checkpoint=checkpoints[each.job.id])
        )
        for each in arrivals
        if each.job.id in checkpoints
    ]


def steady(
    names: Sequence[str],
    tasks: int,
    steps: int,
    changes: Callable[[int], Mapping[str, Any]] = lambda _: {},
) -> list[Arrival]:
    """Tasks with SAG and classifier-free guidance, half of them a round later.

    In each round from the second on one half is in its main pass, the other in its degraded one.
    `changes` gives fields of a job by its number.
    """
    return [
        Arrival(
            index % 2,
            job(
                1000 + index,
                names[index // 2 % len(names)],
                **{"num_inference_steps": steps, **changes(index)},
            ),
        )
        for index in range(tasks)
    ]
