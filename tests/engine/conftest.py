"""The bundled model, loaded once for all tests that do not change it, and small ones of others.

Beside them what several files of tests start from: a checkpoint, and an empty cache of the hub.
"""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
from huggingface_hub import constants

from tests.engine import oracle
from tests.engine.attempts import checkpoints
from tests.engine.checkpoint_cases import WANTED, Case
from tests.engine.jobs import SPEC, Rounds, job
from tests.engine.small_models import save_inpainting, save_xl, spec
from worker import embedded
from worker.config.models import SHIPPED_MODEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch

    from worker.engine.job import Job, JobResult
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


@pytest.fixture(scope="session")
def pipe() -> oracle.Pipeline:
    """The bundled model by diffusers alone."""
    made = diffusers.StableDiffusionPipeline.from_pretrained(
        SHIPPED_MODEL, safety_checker=None, local_files_only=True
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="session")
def alone(pipe: oracle.Pipeline) -> Callable[[Job], torch.Tensor]:
    """The oracle's loop over the bundled model; the same job is made once."""
    return functools.cache(lambda job: oracle.alone(pipe, job))


@pytest.fixture(scope="module")
def case(rounds: Rounds) -> Case:
    """A job, of whose checkpoint tests make files that are none."""
    whole, left = checkpoints(rounds, WANTED)
    runner = rounds.runner
    return Case(rounds, left[2], whole, runner.encode([runner.check(WANTED)])[0])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a hub that accepts connections and never answers."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 600)
    with socket.create_server((embedded.LOOPBACK, 0)) as silent:
        address = f"http://{embedded.LOOPBACK}:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        yield tmp_path
