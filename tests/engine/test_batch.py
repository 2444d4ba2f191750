"""Jobs that share UNet calls: who is in which call, and how large a call is."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from tests.engine.attempts import small
from tests.engine.cases import slow
from tests.engine.jobs import Rounds, job
from tests.engine.shared_calls import STEPS, reported
from worker.job_control import Control

if TYPE_CHECKING:
    import torch


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
