"""Dry runs of CUDA for the tests: a few tasks on a model, and what was found."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks.cuda_dry_run import dry_run, models, scenes
from worker.engine import previews

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def found_in(rounds_count: int, model: str = "bundled", /, **changes: Any) -> list[str]:
    """What a dry run finds in the first rounds of a task of one step, without previews."""
    job = scenes.job(0, "ddim", **({"num_inference_steps": 1} | changes))
    return found_with([scenes.Arrival(0, job)], model, rounds_count)


def found_with(
    arrivals: list[scenes.Arrival],
    model: str = "bundled",
    rounds_count: int = 99,
    adapters: Mapping[str, Path] = MappingProxyType({}),
) -> list[str]:
    """What a dry run finds in the first rounds of any tasks."""
    with mock.patch.object(previews, "fit"), dry_run.engine_on_fake_cuda() as fake:
        rounds = scenes.Rounds(lambda: models.load(model), 8, adapters=adapters)
        rounds.run(arrivals, rounds_count)
    return [*map(str, fake.faults), *rounds.errors()]
