"""Jobs that share calls: who joins, who leaves, who fails, and that nobody else notices."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.jobs import Rounds, apart, job, latents_of
from worker.errors import DeviceOutOfMemoryError
from worker.job_control import Control, JobStopped, Step, Stop

#: Steps of these jobs: few, but enough that rounding in the first is not magnified.
STEPS = 6
SEEDS = (11, 12, 13)


def told(control: Control) -> list[int]:
    """The steps that a job is told from now on."""
    steps: list[int] = []
    control.on_step = lambda step: steps.append(step.step)
    return steps


@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize(("sag_scale", "calls_a_step"), [(0.75, 2), (0.0, 1)])
def test_the_next_call_takes_a_new_task_along(
    rounds: Rounds, rows: int, sag_scale: float, calls_a_step: int
) -> None:
    """A task that arrives when eight are half-way is in the next call, also when those fill it.

    With SAG a step is two calls, of which the second needs the first; the next two are both its.
    """
    company = Rounds(model=rounds.runner.model, max_batch_rows=rows)
    controls = [Control() for _ in range(9)]
    seen = [told(control) for control in controls]
    for number in range(8):
        wanted = job(num_inference_steps=STEPS, seeds=(number,), sag_scale=sag_scale)
        company.submit(wanted, controls[number])
    while not all(3 in steps for steps in seen[:8]):
        company.batch.step()
    company.submit(job(num_inference_steps=STEPS, sag_scale=sag_scale), controls[8])
    for _ in range(calls_a_step):
        assert not seen[8]
        company.batch.step()
    assert seen[8] == [1]
    assert all(steps[-1] < STEPS for steps in seen[:8])
    company.run()


def test_the_result_tells_how_many_shared(rounds: Rounds) -> None:
    """`batch` is the mean number of jobs in a job's calls: 2 for one half, 1 for the other."""
    company = Rounds(model=rounds.runner.model)
    first = company.submit(job(num_inference_steps=STEPS))
    for _ in range(STEPS):
        company.batch.step()
    second = company.submit(job(num_inference_steps=STEPS))
    company.run()
    assert (first.result(timeout=0).batch, second.result(timeout=0).batch) == (1.5, 1.5)


def test_rows_of_both_phases_share_a_call(rounds: Rounds, calls: list[int]) -> None:
    """Two tasks a phase apart take one call a round between them, of 2 rows + 1 row."""
    company = Rounds(model=rounds.runner.model)
    company.submit(job(num_inference_steps=1))
    company.run()
    calls.clear()
    company.submit(job(num_inference_steps=STEPS))
    company.batch.step()
    company.submit(job(num_inference_steps=STEPS))
    company.run()
    assert calls == [2, *[3] * (2 * STEPS - 1), 1]


@pytest.mark.parametrize("rows", [2, 3, 5, 64])
def test_a_call_is_never_larger_than_allowed(rounds: Rounds, calls: list[int], rows: int) -> None:
    """However many wait, a call has at most so many rows, and all of them end."""
    company = Rounds(model=rounds.runner.model, max_batch_rows=rows)
    futures = [
        company.submit(job(num_inference_steps=2, num_images_per_prompt=2)) for _ in range(4)
    ]
    company.run()
    assert max(calls) <= rows
    assert all(len(future.result(timeout=0).pictures) == 2 for future in futures)


def test_pictures_alone_and_in_company(rounds: Rounds) -> None:
    """The same seed gives the same picture, by at most 1 of 255, whoever shares its calls."""
    company = Rounds(model=rounds.runner.model)
    wanted = [job(num_inference_steps=12, seeds=(n,), output_type="png") for n in range(8)]
    futures = [company.submit(each) for each in wanted]
    company.run()
    differing = total = 0
    for each, future in zip(wanted, futures, strict=True):
        ours = np.asarray(future.result(timeout=0).pictures[0].pixels, np.int16)
        alone = np.asarray(rounds.result(each).pictures[0].pixels, np.int16)
        difference = np.abs(ours - alone)
        assert difference.max() <= 1
        differing, total = differing + int((difference > 0).sum()), total + difference.size
    logging.getLogger(__name__).info("%d of %d values differ by 1", differing, total)
    assert differing / total < 0.01


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    victim=st.integers(0, 2),
    after=st.integers(0, 2 * STEPS - 1),
    reason=st.sampled_from(list(Stop)),
    rows=st.sampled_from([2, 4, 64]),
)
def test_leaving_harms_nobody(
    rounds: Rounds, victim: int, after: int, reason: Stop, rows: int
) -> None:
    """A job stopped after any round, for any reason, changes nothing for the others.

    They end equal to alone, and the next job is bit-equal to a fresh engine's.
    """
    company = Rounds(model=rounds.runner.model, max_batch_rows=rows)
    controls = [Control() for _ in SEEDS]
    futures = [
        company.submit(job(num_inference_steps=STEPS, seeds=(seed,)), control)
        for seed, control in zip(SEEDS, controls, strict=True)
    ]
    for _ in range(after):
        company.batch.step()
    controls[victim].request(reason)
    company.run()
    for number, future in enumerate(futures):
        if number == victim and isinstance(future.exception(timeout=0), JobStopped):
            stopped = future.exception(timeout=0)
            assert isinstance(stopped, JobStopped)
            assert stopped.reason is reason
            continue
        assert apart(latents_of(future.result(timeout=0)), _alone(SEEDS[number])) < 2e-4
    again = company.result(job(num_inference_steps=STEPS, seeds=(99,)))
    assert torch.equal(latents_of(again), _alone(99))


_MADE: dict[int, torch.Tensor] = {}


def _alone(seed: int) -> torch.Tensor:
    """What a fresh engine makes of a seed."""
    if seed not in _MADE:
        _MADE[seed] = latents_of(Rounds().result(job(num_inference_steps=STEPS, seeds=(seed,))))
    return _MADE[seed]


def test_a_stopped_job_leaves_in_the_next_round(rounds: Rounds) -> None:
    """One that is asked to stop makes no further call, whatever phase it is in."""
    company = Rounds(model=rounds.runner.model)
    control = Control()
    seen = told(control)
    future = company.submit(job(num_inference_steps=STEPS), control)
    for _ in range(3):
        company.batch.step()
    control.request(Stop.CANCELLED)
    assert not company.batch.step()
    stopped = future.exception(timeout=0)
    assert isinstance(stopped, JobStopped)
    assert (stopped.step, seen) == (1, [1])


class Tight:
    """A UNet whose device holds so many rows and no more."""

    def __init__(self, unet: Any, rows: int) -> None:
        self._usual, self._rows = unet.forward, rows
        self.failed = 0

    def __call__(self, noisy: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The network, where it fits."""
        if len(noisy) > self._rows:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._usual(noisy, *args, **kwargs)


def test_out_of_memory_splits_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many rows are tried again as halves, all jobs end right, and it is not tried for ever."""
    company = Rounds(max_batch_rows=64)
    tight = Tight(company.pipe.unet, 3)
    monkeypatch.setattr(company.pipe.unet, "forward", tight)
    futures = [company.submit(job(num_inference_steps=STEPS, seeds=(seed,))) for seed in SEEDS]
    company.run()
    for seed, future in zip(SEEDS, futures, strict=True):
        assert apart(latents_of(future.result(timeout=0)), _alone(seed)) < 2e-4
    assert tight.failed <= 3


def test_only_what_fails_alone_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is too large by itself is out of memory; those beside it are not."""
    company = Rounds(max_batch_rows=64)
    unet = company.pipe.unet
    usual = unet.forward

    def forward(noisy: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if noisy.shape[-1] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return usual(noisy, *args, **kwargs)

    monkeypatch.setattr(unet, "forward", forward)
    large = company.submit(job(num_inference_steps=STEPS, width=128))
    small = company.submit(job(num_inference_steps=STEPS, seeds=(SEEDS[0],)))
    company.run()
    assert isinstance(large.exception(timeout=0), DeviceOutOfMemoryError)
    assert apart(latents_of(small.result(timeout=0)), _alone(SEEDS[0])) < 2e-4


def test_a_row_that_breaks_ends_its_own_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one of many makes the call itself fail, that one ends and the others go on."""
    company = Rounds(max_batch_rows=64)
    unet = company.pipe.unet
    usual = unet.forward

    def forward(noisy: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if (noisy.abs() > 1e6).any():
            raise ValueError("a row that no kernel takes")
        return usual(noisy, *args, **kwargs)

    monkeypatch.setattr(unet, "forward", forward)
    bad = company.submit(job(num_inference_steps=STEPS))
    good = [company.submit(job(num_inference_steps=STEPS, seeds=(seed,))) for seed in SEEDS]
    company.batch.step()
    image = company.batch._active[0].images[0]
    image.latents = image.latents + 1e7
    image.degraded = None
    company.run()
    assert "no kernel" in str(bad.exception(timeout=0))
    for seed, future in zip(SEEDS, good, strict=True):
        assert apart(latents_of(future.result(timeout=0)), _alone(seed)) < 2e-4


def test_a_sampler_that_breaks_ends_its_own_job(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a call, what one picture's sampler raises keeps no other from its own step."""
    company = Rounds(model=rounds.runner.model)
    futures = [company.submit(job(num_inference_steps=STEPS, seeds=(seed,))) for seed in SEEDS]
    company.batch.step()

    def fail(*_args: Any, **_options: Any) -> None:
        raise ArithmeticError("mine")

    scheduler = company.batch._active[1].images[0].sampler.scheduler
    monkeypatch.setattr(scheduler, "step", fail)
    company.run()
    assert isinstance(futures[1].exception(timeout=0), ArithmeticError)
    for number in (0, 2):
        made = latents_of(futures[number].result(timeout=0))
        assert apart(made, _alone(SEEDS[number])) < 2e-4


def test_a_callback_that_breaks_ends_its_own_job(rounds: Rounds) -> None:
    """What a job's own callback raises is its end, and nobody else's."""
    company = Rounds(model=rounds.runner.model)

    def fail(_step: Step) -> None:
        raise LookupError("mine")

    bad = company.submit(job(num_inference_steps=STEPS), Control(on_step=fail))
    good = company.submit(job(num_inference_steps=STEPS, seeds=(SEEDS[0],)))
    company.run()
    assert isinstance(bad.exception(timeout=0), LookupError)
    assert apart(latents_of(good.result(timeout=0)), _alone(SEEDS[0])) < 2e-4


def test_sizes_take_turns(rounds: Rounds) -> None:
    """Jobs of two sizes can't share a call; they take turns, and neither waits for the other."""
    company = Rounds(model=rounds.runner.model)
    controls = Control(), Control()
    first, second = (told(control) for control in controls)
    company.submit(job(num_inference_steps=STEPS), controls[0])
    company.submit(job(num_inference_steps=STEPS, width=96), controls[1])
    for _ in range(8):
        company.batch.step()
    assert (first, second) == ([1, 2], [1, 2])
    company.run()


def test_models_take_turns(rounds: Rounds) -> None:
    """Where one model is kept, a job for another waits until the first model's jobs are done.

    Later jobs for the first wait behind it; the one unused is let go.
    """
    company = Rounds(model=rounds.runner.model, aliases=("a", "b"))
    order: list[str] = []
    for model in ("a", "b", "a"):
        future = company.submit(job(num_inference_steps=2, model=model))
        future.add_done_callback(partial(lambda model, _: order.append(model), model))
    company.run()
    assert order == ["a", "b", "a"]
    assert company.builds == 3


def test_a_model_at_work_makes_no_room(rounds: Rounds) -> None:
    """Of two that are kept, the one whose jobs are done goes, used last or not."""
    company = Rounds(model=rounds.runner.model, aliases=("a", "b", "c"), max_models=2)
    company.submit(job(num_inference_steps=STEPS, model="a"))
    done = company.submit(job(num_inference_steps=1, model="b"))
    while not done.done():
        company.batch.step()
    company.submit(job(num_inference_steps=1, model="c"))
    company.run()
    assert company.builds == 3


@pytest.fixture
def calls(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each call of the shared model's UNet."""
    rows: list[int] = []
    unet = rounds.pipe.unet
    usual = unet.forward

    def forward(noisy: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(noisy))
        return usual(noisy, *args, **kwargs)

    monkeypatch.setattr(unet, "forward", forward)
    return rows
