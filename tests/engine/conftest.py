"""The bundled model, loaded once for all tests that do not change it, and small ones of others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.jobs import SPEC, Rounds, job
from tests.engine.small_models import save_inpainting, save_xl, spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.engine.job import JobResult
    from worker.job_control import Control


@pytest.fixture(scope="session")
def rounds() -> Rounds:
    """The bundled model as the worker loads it on a machine without a GPU."""
    return Rounds()


@pytest.fixture(scope="session")
def half() -> Rounds:
    """The bundled model in bfloat16."""
    return Rounds(SPEC.model_copy(update={"dtype": "bfloat16"}))


@pytest.fixture(scope="session")
def make(rounds: Rounds) -> Callable[..., JobResult]:
    """Run a job alone on the shared model; a `control` and any field of `Job` by keyword."""

    def run(control: Control | None = None, **changes: Any) -> JobResult:
        return rounds.result(job(**changes), control)

    return run


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """A small model of Stable Diffusion XL."""
    return Rounds(spec(save_xl(tmp_path_factory.mktemp("xl"))))


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """A small model whose UNet knows masks."""
    return Rounds(spec(save_inpainting(tmp_path_factory.mktemp("inpainting"))))
