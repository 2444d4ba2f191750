"""Requests drawn at random, many in one batch: equal to the same request made alone."""

from __future__ import annotations

import random

import pytest

from tests.engine import oracle
from tests.engine.cases import nightly, slow
from tests.engine.jobs import CLOSE, Rounds, apart, latents_of
from tests.engine.random_requests import (
    NEAR_THRESHOLD,
    ROUNDINGS,
    draw,
    expected,
    under_sd15_noise,
)

#: Requests of one batch; eight batches by night are 200 requests.
TOGETHER, BATCHES = 25, 8
#: Requests of 25 whose rounding is magnified above `CLOSE`; the most seen were 5.
FAR = 8


@pytest.fixture(scope="module")
def loaded() -> Rounds:
    """The bundled UNet under the noise schedule of Stable Diffusion 1.5."""
    rounds = Rounds(max_batch_rows=64)
    under_sd15_noise(rounds.pipe)
    return rounds


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("number", "together"),
    [
        *((n, 2) for n in range(4)),
        *slow((0, TOGETHER)),
        *nightly(*((n, TOGETHER) for n in range(1, BATCHES))),
    ],
)
def test_other_jobs_change_nothing(loaded: Rounds, number: int, together: int) -> None:
    """Whatever else is in its UNet calls, a request gives the latents that it gives alone upstream.

    Sizes, steps, scales, samplers, images, arrivals and the rows of a call are drawn at random.
    Where upstream can't or is wrong, the oracle is the plain loop that test_oracle.py checks. Where
    the difference is above `CLOSE`, the oracle itself must differ about as much when its UNet
    computes the same rows with other kernels, since such a request magnifies any rounding; or a
    column sum must be so near to the mask's threshold that rounding decides which side it is on.
    """
    dice = random.Random(number)
    batch_rounds = Rounds(model=loaded.runner.model, max_batch_rows=dice.choice((6, 16, 40)))
    wanted = [draw(dice, brief=together < TOGETHER) for _ in range(together)]
    futures = []
    for each in wanted:
        futures.append(batch_rounds.submit(each))
        for _ in range(dice.choice((0, 0, 1, 3, 8))):
            batch_rounds.batch.step()
    batch_rounds.run()
    far = 0
    for each, future in zip(wanted, futures, strict=True):
        difference = apart(latents_of(future.result(timeout=0)), expected(loaded.pipe, each))
        if difference > CLOSE:
            far += 1
            alone = oracle.alone(loaded.pipe, each)
            rounding = apart(oracle.alone(oracle.crowded(loaded.pipe), each), alone)
            margin = oracle.threshold_margin(loaded.pipe, each)
            at_threshold = margin < max(NEAR_THRESHOLD, rounding)
            assert difference <= ROUNDINGS * rounding or at_threshold, (margin, each)
    assert far <= -(-FAR * together // TOGETHER)
