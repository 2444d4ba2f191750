"""Checkpoints of the previous version in today's engine, and of today's in the previous one."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.engine.attempts import checkpoints, resumed, small
from tests.engine.jobs import CLOSE, Rounds, job, latents_of
from worker.engine import checkpoint_identity
from worker.engine.sampling import samplers

if TYPE_CHECKING:
    from pathlib import Path

STEP = 3
#: The previous version's engine: for each job its own checkpoint, and what it makes of today's.
PREVIOUS = """
import dataclasses, sys
from concurrent.futures import Future
import torch
import worker.engine
from worker.engine import models
from worker.engine.batch import Batch
from worker.engine.in_flight import InFlight
from worker.engine.job import Control, Job
from worker.engine.runner_cache import RunnerCache
from worker.model_spec import ModelSpec
assert worker.engine.__file__.startswith(sys.argv[1]), worker.engine.__file__
spec = ModelSpec(path=sys.argv[2], safety_checker=False, dtype="float32")
runners = RunnerCache({"default": spec}, lambda spec: models.load(spec, "cpu", "none"), 1, 64)

def result(job, left):
    batch = Batch(runners, lambda call, *args: call(*args))
    future = Future()
    batch.add(InFlight(0, job, Control(on_checkpoint=left.__setitem__), future))
    while batch.step():
        pass
    return future.result(timeout=0)

known = {each.name for each in dataclasses.fields(Job)}
answers = {}
for name, given, todays in torch.load(sys.argv[4]):
    job, left = Job(**{key: value for key, value in given.items() if key in known}), {}
    result(dataclasses.replace(job, checkpoint_every=1), left)
    again = result(dataclasses.replace(job, checkpoint=todays), {})
    answers[name] = left[int(sys.argv[3])], again.resumed_from_step, again.pictures[0].pixels
torch.save(answers, sys.argv[4])
"""


def test_a_plain_job_has_the_digest_of_the_first_version() -> None:
    """Fields that were added since do not change the checkpoints of jobs without them."""
    first = "391f6184aa32b87de063721b1f9dfeaa"
    assert checkpoint_identity.job_digest(job()) == first
    for name in checkpoint_identity._ADDED:
        assert checkpoint_identity.job_digest(job(**{name: 0.5})) != first


@pytest.fixture(scope="module")
def rounds() -> Rounds:
    """Today's engine with its bundled model."""
    return Rounds()


@pytest.fixture(scope="module")
def todays(rounds: Rounds) -> dict[str, tuple[torch.Tensor, bytes]]:
    """The latents of a job of each sampler, and its checkpoint of a step in the middle."""
    made = {}
    for name in samplers.SAMPLERS:
        whole, left = checkpoints(rounds, small(scheduler=name))
        made[name] = latents_of(whole), left[STEP]
    return made


@pytest.fixture(scope="module")
def answers(
    previous: Path,
    todays: dict[str, tuple[torch.Tensor, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[bytes, int | None, torch.Tensor]]:
    """Of the previous version: its own checkpoint, where it resumed today's, and its latents."""
    path = tmp_path_factory.mktemp("answers") / "answers.pt"
    given = [(name, vars(small(scheduler=name)), data) for name, (_, data) in todays.items()]
    torch.save(given, path)
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", PREVIOUS,
         str(previous), str(previous / "models" / "tiny-shapes"), str(STEP), str(path)],
        env={**os.environ, "PYTHONPATH": str(previous)},
        capture_output=True, check=False, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = torch.load(path)
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_versions_resume_each_others_checkpoints(
    todays: dict[str, tuple[torch.Tensor, bytes]],
    answers: dict[str, tuple[bytes, int | None, torch.Tensor]],
    rounds: Rounds,
    name: str,
) -> None:
    """Both engines continue from the other's step, and make the picture of one that is whole."""
    whole, _ = todays[name]
    theirs, resumed_from_step, latents = answers[name]
    assert resumed_from_step == STEP
    again = resumed(rounds, small(scheduler=name), theirs)
    assert again.resumed_from_step == STEP
    for each in (latents[None], latents_of(again)):
        assert float((each - whole).abs().max()) <= CLOSE * float(whole.abs().max())
