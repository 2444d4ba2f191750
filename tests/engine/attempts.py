"""Attempts at one job: the first leaves checkpoints, the next resumes from one."""

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
    from worker.engine.jobs.job import Job, JobResult


def small(**changes: Any) -> Job:
    """A job of six steps at 32 px, which takes half the time of the model's own 64."""
    return job(**({"height": 32, "width": 32, "num_inference_steps": 6} | changes))


def keeping(left: dict[int, bytes]) -> Control:
    """A control that puts a job's checkpoints into `left`, by step."""
    return Control(on_checkpoint=left.__setitem__)


def new_batch(
    rounds: Rounds, side_executor: Callable[..., object] = lambda call, *args: call(*args)
) -> Rounds:
    """A new batch over the shared model, as another process would have it."""
    other = copy.copy(rounds)
    other.batch = Batch(rounds.runners, side_executor)
    return other


def checkpoints(rounds: Rounds, wanted: Job, every: int = 1) -> tuple[JobResult, dict[int, bytes]]:
    """A job's result and its checkpoints, all of which are written after it is done."""
    later: list[Callable[[], object]] = []
    left: dict[int, bytes] = {}
    batch = new_batch(rounds, side_executor=lambda call, *args: later.append(partial(call, *args)))
    future = batch.submit(dataclasses.replace(wanted, checkpoint_every=every), keeping(left))
    batch.run()
    for call in later:
        call()
    return future.result(timeout=0), left


def drained(batch: Rounds, wanted: Job, after: int) -> tuple[JobStopped | None, bytes | None]:
    """Drain a job after so many rounds; returns its `JobStopped` and its checkpoint."""
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
    """Fail unless the latents of both results are equal bit for bit."""
    assert torch.equal(latents_of(ours), latents_of(theirs))


def stop(
    batch: Rounds, wanted: Job, control: Control, reason: Stop, after: int = 5
) -> Future[JobResult]:
    """Stop a job after so many rounds; a step takes two."""
    future = batch.submit(wanted, control)
    for _ in range(after):
        batch.batch.step()
    control.request(reason)
    batch.run()
    return future
