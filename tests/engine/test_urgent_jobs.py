"""An urgent job among others: in the next call, decoded at once, and no picture changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.attempts import small
from tests.engine.cases import slow
from tests.engine.jobs import CLOSE_6_STEPS, Rounds, assert_close, latents_of
from tests.engine.shared_calls import SEEDS, STEPS, reported
from worker.engine.batch_scheduler import CALLS_PER_TURN
from worker.engine.runner import Runner
from worker.job_control import Control

if TYPE_CHECKING:
    from concurrent.futures import Future


@pytest.mark.parametrize(
    ("rows", "sag_scale", "size_px"),
    [(2, 0.75, 32), (2, 0.0, 64), *slow((1, 0.75, 64), (2, 0.0, 32), (3, 0.75, 32), (4, 0.75, 64))],
)
def test_the_next_call_has_a_job_of_priority_0(
    rounds: Rounds, rows: int, sag_scale: float, size_px: int
) -> None:
    """A job of priority 0 is in the next call, whatever else runs or waits.

    With SAG a step is two calls; it is in both of the next two, and from then on in all but one of
    `CALLS_PER_TURN`.
    """
    together = Rounds(model=rounds.runner.model, max_batch_rows=rows)
    for number in range(4):
        together.submit(small(seeds=(number,), sag_scale=sag_scale))
    for _ in range(3):
        together.batch.step()
    for number in range(4, 8):
        together.submit(small(seeds=(number,), sag_scale=sag_scale))
    control = Control()
    steps = reported(control)
    size = {"height": size_px, "width": size_px}
    future = together.submit(small(sag_scale=sag_scale, priority=0, **size), control)
    calls_a_step = 2 if sag_scale else 1
    for _ in range(calls_a_step):
        assert not steps
        together.batch.step()
    assert steps == [1]
    calls = calls_a_step * STEPS
    for _ in range(calls - calls_a_step + calls // (CALLS_PER_TURN - 1)):
        together.batch.step()
    assert steps[-1] == STEPS
    assert future.done()
    together.run()


def test_a_job_that_is_displaced_gives_the_same_picture(rounds: Rounds) -> None:
    """A displaced job gives the same picture, also if displaced between two passes of a step."""
    together = Rounds(model=rounds.runner.model, max_batch_rows=2)
    futures = []
    for number, seed in enumerate(SEEDS):
        futures.append(together.submit(small(seeds=(seed,), priority=9 - number)))
        together.batch.step()
        together.submit(small(num_inference_steps=2, priority=0))
    together.run()
    for seed, future in zip(SEEDS, futures, strict=True):
        alone = latents_of(rounds.result(small(seeds=(seed,))))
        assert_close(latents_of(future.result(timeout=0)), alone, CLOSE_6_STEPS)


def test_an_urgent_job_does_not_wait_for_a_full_decode(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decode that would move the UNet waits for other jobs, unless a decoded job is urgent."""
    monkeypatch.setattr(Runner, "decode_moves_unet", True)
    together = Rounds(model=rounds.runner.model)

    def submit(steps: int, priority: int) -> Future[object]:
        request = small(num_inference_steps=steps, sag_scale=0.0, priority=priority)
        return together.submit(request)  # type: ignore[return-value]  # only whether it is done

    submit(20, 5)
    early = submit(1, 5)
    together.batch.step()
    assert not early.done()
    urgent = submit(1, 2)
    together.batch.step()
    assert urgent.done()
    assert early.done()
    together.run()
