"""Submitted jobs that wait, without an engine."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from worker.engine.batch_scheduler import AdapterBudget
from worker.engine.job import Job
from worker.engine.running_job import RunningJob
from worker.job_control import Control

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

MODEL, PRIORITY = st.sampled_from("abc"), st.integers(0, 9)


#: Of jobs without adapters, for which there is always room.
NO_ADAPTERS = AdapterBudget(1)


def loaded(models: Collection[str]) -> Callable[[str, Collection[str]], bool]:
    """These models are loaded, and all of their adapters."""
    return lambda model, _: model in models


def without_adapters(_: str, names: Collection[str]) -> bool:
    """All models are loaded, and no adapters."""
    return not names


def waiting(
    number: int,
    model: str = "a",
    priority: int = 5,
    image: bytes | None = None,
    adapters: str = "",
) -> RunningJob:
    """A submitted job; what the engine makes of it does not matter here."""
    job = Job(
        id=str(number), model=model, prompts=("x",), negative_prompts=(), height=None, width=None,
        num_inference_steps=1, guidance_scale=1.0, sag_scale=0.0, num_images_per_prompt=1, eta=0.0,
        seeds=(1,), max_images=1, max_side_px=64, scheduler=None, output_type="png",
        priority=priority, image=image, loras=tuple((name, 1.0) for name in adapters),
    )  # fmt: skip
    return RunningJob(number, job, Control(), Future())


def numbers(jobs: list[RunningJob]) -> list[int]:
    return [each.number for each in jobs]
