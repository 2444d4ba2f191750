"""When images that are done are decoded: at once, or many together where the UNet moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.simulated_calls import PURE
from worker.engine.batch_scheduler import DECODE_BATCH, DECODE_WAIT_ROUNDS, decode_due


@pytest.mark.parametrize(("running", "moves"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("waited_rounds", [0, DECODE_WAIT_ROUNDS])
def test_a_decode_that_moves_nothing_is_due_at_once(
    running: bool, moves: bool, waited_rounds: int
) -> None:
    """One image is decoded at once where no job runs, or where the UNet stays on the device."""
    for pictures in range(DECODE_BATCH + 2):
        due = decode_due(pictures, waited_rounds, running=running, moves_unet=moves)
        assert due == (pictures > 0)


@PURE
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_a_decode_that_moves_the_unet_waits(done: list[int]) -> None:
    """A decode that moves the UNet waits for a full batch, but at most the allowed rounds.

    `done` is how many images each round adds.
    """
    since: list[int] = []
    waited = 0
    for now, pictures in enumerate(done):
        since += [now] * pictures
        waited = waited + 1 if since else 0
        if decode_due(len(since), waited, running=True, moves_unet=True):
            assert len(since) >= DECODE_BATCH or now - since[0] == DECODE_WAIT_ROUNDS - 1
            since, waited = [], 0
        else:
            assert len(since) < DECODE_BATCH
            assert all(now - each < DECODE_WAIT_ROUNDS - 1 for each in since)
    assert not decode_due(0, 100, running=True, moves_unet=True)
