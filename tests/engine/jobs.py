"""Jobs for the engine's tests, and what diffusers alone makes of the same."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from diffusers import StableDiffusionSAGPipeline

from worker.config.models import SHIPPED_MODEL, ModelSpec
from worker.engine.batch import Batch
from worker.engine.job import Job
from worker.engine.model_cache import ModelCache
from worker.engine.running_job import RunningJob
from worker.job_control import Control

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.engine.job import JobResult
    from worker.engine.model_loader import LoadedModel
    from worker.engine.runner import Runner

#: The fixture `make`: runs a job of these fields, and of a `control`.
Make: TypeAlias = "Callable[..., JobResult]"

SPEC = ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False)
#: Largest difference in latents that rounding makes; the first steps of a short run magnify it.
CLOSE = 1e-4


class Rounds:
    """A batch over one model, with nothing beside it: each round is a call of `step`."""

    def __init__(
        self,
        spec: ModelSpec = SPEC,
        max_batch_rows: int = 64,
        model: LoadedModel | None = None,
        aliases: tuple[str, ...] = ("default",),
        max_models: int = 1,
    ) -> None:
        from worker.engine import model_loader

        #: How often a model was built.
        self.builds = 0

        def load(spec: ModelSpec) -> LoadedModel:
            self.builds += 1
            return model or model_loader.load(spec, "cpu", "none")

        self.runners = ModelCache(dict.fromkeys(aliases, spec), load, max_models, max_batch_rows)
        self.batch = Batch(self.runners, lambda call, *args: call(*args))
        self._number = 0

    @property
    def runner(self) -> Runner:
        """Of its model."""
        return self.runners.get("default")

    @property
    def pipe(self) -> Any:
        """Of diffusers, as the worker loads it."""
        return self.runner.pipe

    def submit(self, wanted: Job, control: Control | None = None) -> Future[JobResult]:
        """Let a job wait for the next round."""
        self._number += 1
        future: Future[JobResult] = Future()
        self.batch.add(RunningJob(self._number, wanted, control or Control(), future))
        return future

    def run(self) -> None:
        """Rounds, until nothing is left."""
        while self.batch.step():
            pass

    def result(self, wanted: Job, control: Control | None = None) -> JobResult:
        """One job alone."""
        future = self.submit(wanted, control)
        self.run()
        return future.result(timeout=0)


def job(**changes: Any) -> Job:
    """A job of three steps, with `changes`."""
    given: dict[str, Any] = {
        "id": "a",
        "model": "default",
        "prompts": ("a large red star on a blue background",),
        "negative_prompts": (),
        "height": None,
        "width": None,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "sag_scale": 0.75,
        "num_images_per_prompt": 1,
        "eta": 0.0,
        "seeds": (5,),
        "max_images": 4,
        "scheduler": None,
        "output_type": "latent",
    }
    return Job(**(given | changes))


def upstream(pipe: Any, output_type: str = "latent", **arguments: Any) -> Any:
    """What diffusers' SAG pipeline makes by its own `__call__`, nothing of ours between."""
    given: dict[str, Any] = {
        "prompt": "a large red star on a blue background",
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "sag_scale": 0.75,
        "generator": [torch.Generator("cpu").manual_seed(5)],
        "output_type": output_type,
    }
    theirs = StableDiffusionSAGPipeline(**pipe.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    return theirs(**(given | arguments)).images


def latents_of(result: JobResult) -> torch.Tensor:
    return torch.stack([picture.pixels for picture in result.pictures])


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, close: float = CLOSE) -> None:
    """No value differs by more than `close` of the largest, where that is above 1."""
    assert apart(ours, theirs) <= close * max(1.0, float(theirs.abs().max()))
