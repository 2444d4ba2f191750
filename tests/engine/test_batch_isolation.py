"""Jobs that share UNet calls are stopped and fail without an effect on the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.attempts import small
from tests.engine.cases import slow
from tests.engine.jobs import CLOSE_6_STEPS, Rounds, assert_close, job, latents_of
from tests.engine.shared_calls import SEEDS, STEPS, reported
from worker.errors import DeviceOutOfMemoryError
from worker.job_control import Control, JobStopped, Step, Stop

Alone: TypeAlias = Callable[[int], torch.Tensor]


@pytest.mark.parametrize(
    ("victim", "after", "reason", "rows"),
    [
        (1, 3, Stop.DRAINED, 4),
        (2, 7, Stop.EXPIRED, 64),
        *slow((0, 0, Stop.CANCELLED, 2), (0, 11, Stop.SUPERSEDED, 4)),
    ],
)
def test_a_stopped_job_has_no_effect_on_others(
    rounds: Rounds, fresh: Alone, victim: int, after: int, reason: Stop, rows: int
) -> None:
    """A job stopped after any round, for any reason, changes nothing for the others.

    They end equal to alone, and the next job has the bits that it has on a fresh engine.
    """
    stop_one(rounds, fresh, victim, after, reason, rows)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    victim=st.integers(0, 2),
    after=st.integers(0, 2 * STEPS - 1),
    reason=st.sampled_from(list(Stop)),
    rows=st.sampled_from([2, 4, 64]),
)
def test_stopped_jobs_have_no_effect_on_others(
    rounds: Rounds, fresh: Alone, victim: int, after: int, reason: Stop, rows: int
) -> None:
    """A stopped job changes nothing for the others, in 25 examples drawn anew in each run."""
    stop_one(rounds, fresh, victim, after, reason, rows)


def stop_one(
    rounds: Rounds, fresh: Alone, victim: int, after: int, reason: Stop, rows: int
) -> None:
    together = Rounds(model=rounds.runner.model, max_batch_rows=rows)
    controls = [Control() for _ in SEEDS]
    futures = [
        together.submit(small(seeds=(seed,)), control)
        for seed, control in zip(SEEDS, controls, strict=True)
    ]
    for _ in range(after):
        together.batch.step()
    controls[victim].request(reason)
    together.run()
    for number, future in enumerate(futures):
        if number == victim and isinstance(future.exception(timeout=0), JobStopped):
            stopped = future.exception(timeout=0)
            assert isinstance(stopped, JobStopped)
            assert stopped.reason is reason
            continue
        made = latents_of(future.result(timeout=0))
        assert_close(made, fresh(SEEDS[number]), CLOSE_6_STEPS)
    again = together.result(small(seeds=(99,)))
    assert torch.equal(latents_of(again), fresh(99))


@pytest.fixture(scope="module")
def fresh() -> Alone:
    """Latents that an engine of its own makes of a seed."""
    own = Rounds()
    return cache(lambda seed: latents_of(own.result(small(seeds=(seed,)))))


def test_a_stopped_job_leaves_in_the_next_round(rounds: Rounds) -> None:
    """A stopped job makes no further UNet call, whatever phase it is in."""
    together = Rounds(model=rounds.runner.model)
    control = Control()
    seen = reported(control)
    future = together.submit(job(num_inference_steps=STEPS), control)
    for _ in range(3):
        together.batch.step()
    control.request(Stop.CANCELLED)
    assert not together.batch.step()
    stopped = future.exception(timeout=0)
    assert isinstance(stopped, JobStopped)
    assert (stopped.step, seen) == (1, [1])


class Tight:
    """A UNet whose device has memory for so many rows."""

    def __init__(self, unet: Any, rows: int) -> None:
        self._usual, self._rows = unet.forward, rows
        self.failed = 0

    def __call__(self, noisy: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The UNet's output, where the rows fit."""
        if len(noisy) > self._rows:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._usual(noisy, *args, **kwargs)


def test_out_of_memory_splits_the_call(
    rounds: Rounds, fresh: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that does not fit is retried in halves: all jobs end right, 3 calls fail at most."""
    together = Rounds(model=rounds.runner.model)
    tight = Tight(together.pipe.unet, 3)
    monkeypatch.setattr(together.pipe.unet, "forward", tight)
    futures = [together.submit(small(seeds=(seed,))) for seed in SEEDS]
    together.run()
    for seed, future in zip(SEEDS, futures, strict=True):
        assert_close(latents_of(future.result(timeout=0)), fresh(seed), CLOSE_6_STEPS)
    assert tight.failed <= 3


def test_only_what_fails_alone_fails(
    rounds: Rounds, fresh: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that does not fit alone is out of memory; the others end right."""
    together = Rounds(model=rounds.runner.model)
    unet = together.pipe.unet
    usual = unet.forward

    def forward(noisy: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if noisy.shape[-1] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return usual(noisy, *args, **kwargs)

    monkeypatch.setattr(unet, "forward", forward)
    large = together.submit(small(width=64))
    fitting = together.submit(small(seeds=(SEEDS[0],)))
    together.run()
    assert isinstance(large.exception(timeout=0), DeviceOutOfMemoryError)
    assert_close(latents_of(fitting.result(timeout=0)), fresh(SEEDS[0]), CLOSE_6_STEPS)


def test_a_row_that_breaks_ends_its_own_job(
    rounds: Rounds, fresh: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one image makes the call itself fail, its job fails and the others end right."""
    together = Rounds(model=rounds.runner.model)
    unet = together.pipe.unet
    usual = unet.forward

    def forward(noisy: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if (noisy.abs() > 1e6).any():
            raise ValueError("a row that no kernel takes")
        return usual(noisy, *args, **kwargs)

    monkeypatch.setattr(unet, "forward", forward)
    bad = together.submit(small())
    good = [together.submit(small(seeds=(seed,))) for seed in SEEDS]
    together.batch.step()
    image = together.batch._active[0].images[0]
    image.latents = image.latents + 1e7
    image.degraded = None
    together.run()
    assert "no kernel" in str(bad.exception(timeout=0))
    for seed, future in zip(SEEDS, good, strict=True):
        assert_close(latents_of(future.result(timeout=0)), fresh(seed), CLOSE_6_STEPS)


def test_a_sampler_that_breaks_ends_its_own_job(
    rounds: Rounds, fresh: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of one image's sampler does not keep the others from their step."""
    together = Rounds(model=rounds.runner.model)
    futures = [together.submit(small(seeds=(seed,))) for seed in SEEDS]
    together.batch.step()

    def fail(*_args: Any, **_options: Any) -> None:
        raise ArithmeticError("mine")

    scheduler = together.batch._active[1].images[0].sampler.scheduler
    monkeypatch.setattr(scheduler, "step", fail)
    together.run()
    assert isinstance(futures[1].exception(timeout=0), ArithmeticError)
    for number in (0, 2):
        made = latents_of(futures[number].result(timeout=0))
        assert_close(made, fresh(SEEDS[number]), CLOSE_6_STEPS)


def test_a_callback_that_breaks_ends_its_own_job(rounds: Rounds, fresh: Alone) -> None:
    """An error of a job's callback ends that job alone."""
    together = Rounds(model=rounds.runner.model)

    def fail(_step: Step) -> None:
        raise LookupError("mine")

    bad = together.submit(small(), Control(on_step=fail))
    good = together.submit(small(seeds=(SEEDS[0],)))
    together.run()
    assert isinstance(bad.exception(timeout=0), LookupError)
    assert_close(latents_of(good.result(timeout=0)), fresh(SEEDS[0]), CLOSE_6_STEPS)
