"""The shipped model, loaded once for reading and anew where a test must know it is fresh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.jobs import SPEC, job
from worker.engine.job import Control, JobResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.engine.models import LoadedModel


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    """The shipped model as the worker loads it on a machine without a GPU."""
    from worker.engine import models

    return models.load(SPEC, "cpu", "model")


@pytest.fixture(scope="session")
def make(loaded: LoadedModel) -> Callable[..., JobResult]:
    """Run a job on the shared model; a `control` and any field of `Job` by keyword."""
    from worker.engine import runner

    def run(control: Control | None = None, **changes: Any) -> JobResult:
        return runner.run(loaded, job(**changes), control or Control(), (0.0, 0.0))

    return run
