"""What random requests give alone, in float32 on the CPU: by upstream, or by the plain loop.

Made in several processes, which must be forked before this one uses CUDA.
"""

from __future__ import annotations

import multiprocessing
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from tests.engine import oracle, random_requests
from worker.config.models import SHIPPED_MODEL, ModelSpec
from worker.engine.loading import model_loader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.pool import Pool

    import numpy as np

    from worker.engine.jobs.job import Job

#: Most processes, one core each.
PROCESSES = 12
#: The pipeline of this module's functions, loaded before the processes are forked.
_pipes: list[Any] = []


@dataclass(frozen=True)
class Reference:
    """What one request gives alone."""

    job: Job
    by: str
    latents: torch.Tensor
    #: Values 0 … 255.
    pictures: torch.Tensor
    #: The noise that the request begins with, a file for `Job.latents`.
    noise: bytes

    def apart(self, latents: torch.Tensor) -> float:
        """The largest difference, in parts of the largest latent; infinite where one is NaN."""
        assert latents.shape == self.latents.shape
        difference = (latents - self.latents).abs().max() / self.latents.abs().max()
        return float(difference.nan_to_num(float("inf")))


@dataclass(frozen=True)
class Rounding:
    """How far a request's reference is moved by rounding alone."""

    #: The loop from itself with other kernels, in parts of the largest latent.
    moved: float
    #: Least distance of a cell from the mask's threshold.
    margin: float

    def explains(self, difference: float) -> bool:
        """Whether a difference is no more than rounding may make."""
        return difference <= random_requests.ROUNDINGS * self.moved or self.is_near

    @property
    def is_near(self) -> bool:
        """Whether rounding may move a cell over the threshold."""
        return self.margin < max(random_requests.NEAR_THRESHOLD, self.moved)


class References:
    """Asks the processes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def of(self, jobs: Sequence[Job]) -> list[Reference]:
        """The reference of each request."""
        made = self._pool.map(_made, jobs, chunksize=1)
        return [
            Reference(job, by, torch.from_numpy(latents), torch.from_numpy(pictures), noise)
            for job, (by, latents, pictures, noise) in zip(jobs, made, strict=True)
        ]

    def rounding(self, jobs: Sequence[Job]) -> list[Rounding]:
        """How far rounding moves each."""
        return self._pool.map(_rounding, jobs, chunksize=1)

    def pictures(self, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Latents decoded in float32 on the CPU, as values 0 … 255."""
        arrays = [each.numpy() for each in latents]
        return [torch.from_numpy(each) for each in self._pool.map(_pictures, arrays, chunksize=1)]


@contextmanager
def started() -> Iterator[References]:
    """The processes, ended on leaving."""
    torch.set_num_threads(1)
    spec = ModelSpec(path=str(SHIPPED_MODEL), safety_checker=False, dtype="float32")
    pipe = model_loader.load(spec, "cpu", "none").pipeline
    random_requests.under_sd15_noise(pipe)
    _pipes.append(pipe)
    count = min(PROCESSES, len(os.sched_getaffinity(0)))
    with multiprocessing.get_context("fork").Pool(count) as pool:
        yield References(pool)


def _made(job: Job) -> tuple[str, np.ndarray, np.ndarray, bytes]:
    pipe = _pipes[0]
    by = "upstream" if random_requests.by_upstream(pipe, job) else "the plain loop"
    latents = random_requests.expected(pipe, job).numpy()
    shape = latents.shape[1:]
    seeds = range(job.seeds[0], job.seeds[0] + len(latents))
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    file = safetensors.torch.save({"latents": torch.stack(noise)})
    return by, latents, _pictures(latents), file


def _rounding(job: Job) -> Rounding:
    pipe = _pipes[0]
    alone = oracle.alone(pipe, job)
    difference = (oracle.alone(oracle.crowded(pipe), job) - alone).abs().max() / alone.abs().max()
    return Rounding(float(difference), oracle.threshold_margin(pipe, job))


def _pictures(latents: np.ndarray) -> np.ndarray:
    vae = _pipes[0].vae
    with torch.inference_mode():
        scaled = torch.from_numpy(latents) / vae.config.scaling_factor
        decoded = vae.decode(scaled, return_dict=False)[0]
        pictures: np.ndarray = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().numpy()
    return pictures
