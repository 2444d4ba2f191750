"""Jobs that share UNet calls: they join, leave and fail without an effect on the others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from tests.engine.attempts import small
from tests.engine.cases import slow
from tests.engine.jobs import CLOSE_6_STEPS, Rounds, assert_close, job, latents_of
from worker.errors import DeviceOutOfMemoryError
from worker.job_control import Control, JobStopped, Step, Stop

STEPS = 6
#: Seeds of `small` jobs whose column sums stay 1e-3 away from the mask's threshold in all steps, a
#: hundred times their rounding. A sum that rounds to the other side (seed 11, 1.4e-5 away) blurs a
#: cell or not, which changes the latents by 5e-4.
SEEDS = (12, 18, 19)
Alone: TypeAlias = Callable[[int], torch.Tensor]


def reported(control: Control) -> list[int]:
    """A list that gets the steps that a job reports."""
    steps: list[int] = []
    control.on_step = lambda step: steps.append(step.step)
    return steps


@pytest.mark.parametrize(
    ("rows", "sag_scale", "calls_a_step"),
    [(16, 0.75, 2), (64, 0.0, 1), *slow((16, 0.0, 1), (64, 0.75, 2))],
)
def test_the_next_call_includes_a_new_job(
    rounds: Rounds, rows: int, sag_scale: float, calls_a_step: int
) -> None:
    """A job that arrives when eight are half-way is in the next call, also when those fill it.

    With SAG a step is two calls; it is in both of the next two.
    """
    together = Rounds(model=rounds.runner.model, max_batch_rows=rows)
    controls = [Control() for _ in range(9)]
    seen = [reported(control) for control in controls]
    for number in range(8):
        together.submit(small(seeds=(number,), sag_scale=sag_scale), controls[number])
    while not all(3 in steps for steps in seen[:8]):
        together.batch.step()
    together.submit(small(sag_scale=sag_scale), controls[8])
    for _ in range(calls_a_step):
        assert not seen[8]
        together.batch.step()
    assert seen[8] == [1]
    assert all(steps[-1] < STEPS for steps in seen[:8])
    together.run()


def test_the_result_has_the_mean_number_of_jobs(rounds: Rounds) -> None:
    """`batch` is the mean number of jobs in a job's calls: 2 in one half, 1 in the other."""
    together = Rounds(model=rounds.runner.model)
    first = together.submit(job(num_inference_steps=STEPS))
    for _ in range(STEPS):
        together.batch.step()
    second = together.submit(job(num_inference_steps=STEPS))
    together.run()
    assert (first.result(timeout=0).batch, second.result(timeout=0).batch) == (1.5, 1.5)


def test_each_call_is_measured_once(rounds: Rounds, calls: list[int]) -> None:
    """Each call's rows and time are measured once, however many jobs share it."""
    names = [
        f"sag_unet_{name}" for name in ("call_rows_sum", "call_rows_count", "step_seconds_count")
    ]
    before = [REGISTRY.get_sample_value(name) or 0.0 for name in names]
    together = Rounds(model=rounds.runner.model)
    for seed in (1, 2):
        together.submit(job(num_inference_steps=2, seeds=(seed,)))
    calls.clear()
    together.run()
    after = [REGISTRY.get_sample_value(name) or 0.0 for name in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == [
        sum(calls), len(calls), len(calls),
    ]  # fmt: skip


def test_rows_of_both_phases_share_a_call(rounds: Rounds, calls: list[int]) -> None:
    """Two jobs one phase apart share each call, of 2 rows + 1 row."""
    together = Rounds(model=rounds.runner.model)
    together.submit(job(num_inference_steps=1))
    together.run()
    calls.clear()
    together.submit(job(num_inference_steps=STEPS))
    together.batch.step()
    together.submit(job(num_inference_steps=STEPS))
    together.run()
    assert calls == [2, *[3] * (2 * STEPS - 1), 1]


@pytest.mark.parametrize("rows", [2, 3, 5, 64])
def test_a_call_is_never_larger_than_allowed(rounds: Rounds, calls: list[int], rows: int) -> None:
    """However many jobs wait, a call has at most `max_batch_rows` rows, and all jobs end."""
    together = Rounds(model=rounds.runner.model, max_batch_rows=rows)
    futures = [
        together.submit(small(num_inference_steps=2, num_images_per_prompt=2)) for _ in range(4)
    ]
    together.run()
    assert max(calls) <= rows
    assert all(len(future.result(timeout=0).images) == 2 for future in futures)


@pytest.mark.parametrize(("jobs", "steps"), [(2, 4), *slow((3, 6), (8, 12))])
def test_pictures_alone_and_together(rounds: Rounds, jobs: int, steps: int) -> None:
    """The same seed gives the same picture, by at most 1 of 255, whatever shares its calls."""
    together = Rounds(model=rounds.runner.model)
    wanted = [job(num_inference_steps=steps, seeds=(n,), output_type="png") for n in range(jobs)]
    futures = [together.submit(each) for each in wanted]
    together.run()
    differing = total = 0
    for each, future in zip(wanted, futures, strict=True):
        ours = np.asarray(future.result(timeout=0).images[0].pixels, np.int16)
        alone = np.asarray(rounds.result(each).images[0].pixels, np.int16)
        difference = np.abs(ours - alone)
        assert difference.max() <= 1
        differing, total = differing + int((difference > 0).sum()), total + difference.size
    logging.getLogger(__name__).info("%d of %d values differ by 1", differing, total)
    assert differing / total < 0.01


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


def test_sizes_take_turns(rounds: Rounds) -> None:
    """Jobs of two sizes can't share a call; they alternate."""
    together = Rounds(model=rounds.runner.model)
    controls = Control(), Control()
    first, second = (reported(control) for control in controls)
    together.submit(job(num_inference_steps=STEPS), controls[0])
    together.submit(job(num_inference_steps=STEPS, width=96), controls[1])
    for _ in range(8):
        together.batch.step()
    assert (first, second) == ([1, 2], [1, 2])
    together.run()


def test_models_take_turns(rounds: Rounds) -> None:
    """With `max_models` 1, a job for another model waits until the first model's jobs are done.

    Later jobs for the first model wait behind it; the idle model is evicted.
    """
    together = Rounds(model=rounds.runner.model, aliases=("a", "b"))
    order: list[str] = []
    for model in ("a", "b", "a"):
        future = together.submit(job(num_inference_steps=2, model=model))
        future.add_done_callback(partial(lambda model, _: order.append(model), model))
    together.run()
    assert order == ["a", "b", "a"]
    assert together.builds == 3


def test_a_model_at_work_makes_no_room(rounds: Rounds) -> None:
    """Of two models the idle one is evicted, even when it was used last."""
    together = Rounds(model=rounds.runner.model, aliases=("a", "b", "c"), max_models=2)
    together.submit(job(num_inference_steps=STEPS, model="a"))
    done = together.submit(job(num_inference_steps=1, model="b"))
    while not done.done():
        together.batch.step()
    together.submit(job(num_inference_steps=1, model="c"))
    together.run()
    assert together.builds == 3


@pytest.fixture
def calls(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the rows of each call of the shared UNet."""
    rows: list[int] = []
    unet = rounds.pipe.unet
    usual = unet.forward

    def forward(noisy: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(noisy))
        return usual(noisy, *args, **kwargs)

    monkeypatch.setattr(unet, "forward", forward)
    return rows
