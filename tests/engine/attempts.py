"""Attempts at one job: what the first leaves, and how the next goes on."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from tests.engine.jobs import job, latents_of
from worker.engine.batch import Batch
from worker.job_control import Control, JobStopped, Stop

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from tests.engine.jobs import Rounds
    from worker.engine.job import Job, JobResult


def small(**changes: Any) -> Job:
    """A job of six steps and pictures of 32 px, which take half the time of the model's own 64."""
    return job(**({"height": 32, "width": 32, "num_inference_steps": 6} | changes))


def keeping(left: dict[int, bytes]) -> Control:
    """A hold on a job whose checkpoints go into `left`, by step."""
    return Control(on_checkpoint=left.__setitem__)


def company(
    rounds: Rounds, side_executor: Callable[..., object] = lambda call, *args: call(*args)
) -> Rounds:
    """A new batch over the shared model, as another process would have it."""
    other = copy.copy(rounds)
    other.batch = Batch(rounds.runners, side_executor)
    return other


def checkpoints(rounds: Rounds, wanted: Job, every: int = 1) -> tuple[JobResult, dict[int, bytes]]:
    """A job's result, and its checkpoints, all of them written only when it was done."""
    later: list[Callable[[], object]] = []
    left: dict[int, bytes] = {}
    batch = company(rounds, side_executor=lambda call, *args: later.append(partial(call, *args)))
    future = batch.submit(dataclasses.replace(wanted, checkpoint_every=every), keeping(left))
    batch.run()
    for call in later:
        call()
    return future.result(timeout=0), left


def drained(batch: Rounds, wanted: Job, after: int) -> tuple[JobStopped | None, bytes | None]:
    """Stop a job for a drain after so many rounds; how it ended, and what it left."""
    left: dict[int, bytes] = {}
    control = keeping(left)
    future = batch.submit(dataclasses.replace(wanted, checkpoint_every=1000), control)
    for _ in range(after):
        batch.batch.step()
    control.request(Stop.DRAINED)
    batch.run()
    stopped = future.exception(timeout=0)
    assert stopped is None or isinstance(stopped, JobStopped)
    assert list(left) == ([stopped.step] if stopped and stopped.step else [])
    return stopped, next(iter(left.values()), None)


def resumed(batch: Rounds, wanted: Job, left: bytes | None) -> JobResult:
    return batch.result(dataclasses.replace(wanted, checkpoint=left))


def assert_same(ours: JobResult, theirs: JobResult) -> None:
    """To the bit."""
    assert torch.equal(latents_of(ours), latents_of(theirs))


def stop(
    batch: Rounds, wanted: Job, control: Control, reason: Stop, after: int = 5
) -> Future[JobResult]:
    """Stop a job after so many rounds, which are two for a step."""
    future = batch.submit(wanted, control)
    for _ in range(after):
        batch.batch.step()
    control.request(reason)
    batch.run()
    return future
