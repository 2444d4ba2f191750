"""Jobs for the engine's tests, and the same requests by diffusers alone."""

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
    from worker.engine.loaded_model import LoadedModel
    from worker.engine.runner import Runner

#: The fixture `make`: runs a job of these fields, and of a `control`.
Make: TypeAlias = "Callable[..., JobResult]"

#: In float32 on every processor: `auto` may mean bfloat16.
SPEC = ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False, dtype="float32")
#: Bound on the difference of two roundings of the same latents, in parts of the largest latent, for
#: 3 steps or more. A UNet call rounds to about 1e-6 of its output; guidance magnifies that by
#: 1 + 2 x 3, a sampler's first step from alpha = 0.006 by more. Measured on an Intel Xeon for all
#: samplers at 3 steps, the plain loop with rows computed once against two and three times in a call
#: (`oracle.crowded`): 8e-6 for ddim, 2.2e-5 for dpmpp_2m_sde, 3.9e-5 at most (kdpm2).
CLOSE = 1e-4
#: The same for ddim at 6 steps: 5.9e-6 was the most, for 5 seeds and 2, 3 and 8 rows.
CLOSE_6_STEPS = 4e-5
#: Spacing of float32 and float64 at 1: a rounding is half of it.
EPS32 = float(torch.finfo(torch.float32).eps)
EPS64 = float(torch.finfo(torch.float64).eps)


class Rounds:
    """A batch over one model without threads: each round is a call of `step`."""

    def __init__(
        self,
        spec: ModelSpec = SPEC,
        max_batch_rows: int | None = 64,
        model: LoadedModel | None = None,
        aliases: tuple[str, ...] = ("default",),
        max_models: int = 1,
        max_adapters: int = 8,
    ) -> None:
        from worker.engine.loading import model_loader

        #: How often a model was built.
        self.builds = 0
        self.spec = spec

        def load(spec: ModelSpec) -> LoadedModel:
            self.builds += 1
            return model or model_loader.load(spec, "cpu", "none")

        self.runners = ModelCache(
            dict.fromkeys(aliases, spec), load, max_models, max_batch_rows, max_adapters
        )
        self.batch = Batch(self.runners, lambda call, *args: call(*args))
        self._number = 0

    @property
    def runner(self) -> Runner:
        """The runner of the model."""
        return self.runners.get("default")

    @property
    def pipe(self) -> Any:
        """The pipeline of diffusers, as the worker loads it."""
        return self.runner.pipe

    def submit(self, wanted: Job, control: Control | None = None) -> Future[JobResult]:
        """Queue a job for the next round."""
        self._number += 1
        future: Future[JobResult] = Future()
        self.batch.add(RunningJob(self._number, wanted, control or Control(), future))
        return future

    def run(self) -> None:
        """Run rounds until no job is left."""
        while self.batch.step():
            pass

    def result(self, wanted: Job, control: Control | None = None) -> JobResult:
        """The result of a job that runs alone."""
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
        "max_side_px": 1024,
        "scheduler": None,
        "output_type": "latent",
    }
    return Job(**(given | changes))


def upstream(pipe: Any, output_type: str = "latent", **arguments: Any) -> Any:
    """Images of diffusers' SAG pipeline by its own `__call__`, without any code of the worker."""
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
    return torch.stack([picture.pixels for picture in result.images])


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, close: float = CLOSE) -> None:
    """No value differs by more than `close` of the largest, where that is above 1."""
    assert apart(ours, theirs) <= close * max(1.0, float(theirs.abs().max()))
