"""How many rows a call should have, measured by the test's own clock, so that nothing waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.engine.measured_models import PURE, TimedUnet
from worker.engine.device.warmup import MAX_CALL_S, MIN_GAIN, TRIED_ROWS
from worker.engine.families.conditioning import TEXT

if TYPE_CHECKING:
    from collections.abc import Callable


@PURE
@given(st.lists(st.floats(0.001, 2.0), min_size=len(TRIED_ROWS), max_size=len(TRIED_ROWS)))
@example([0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16])
@example([0.6, 0.7, 0.95, 1.0, 1.0, 1.0, 1.0])
def test_the_fewest_rows_that_are_cheap(times: list[float]) -> None:
    """No short call is cheaper per row by over 5 %, and none of fewer rows is as cheap.

    Short is up to half a second, or 1.5 times one row alone. After the first call that is not, none
    is tried.
    """
    table = dict(zip(TRIED_ROWS, times, strict=True))
    network = TimedUnet(table.__getitem__)
    found = int(network.measured().rows)
    longest_s = max(MAX_CALL_S, 1.5 * table[1])
    tried = sorted(set(network.calls))
    assert tried == list(TRIED_ROWS[: len(tried)])
    assert all(table[rows] <= longest_s for rows in tried[:-1])
    assert table[tried[-1]] > longest_s or tried == list(TRIED_ROWS)
    cost = {rows: table[rows] / rows for rows in tried if table[rows] <= longest_s}
    assert found in cost
    for rows, each in cost.items():
        assert (
            cost[found] <= each * (1 + MIN_GAIN) + 1e-9
        )  # of a clock up to 1,000 s, whose spacing is 1e-13
        assert rows >= found or each > min(cost.values()) * (1 + MIN_GAIN) - 1e-9


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        (lambda rows: 0.01 * rows, 1),
        (lambda rows: 0.05 + 0.0001 * rows, 64),
        (lambda rows: 0.01 * max(8, rows), 8),
        (lambda rows: 0.02 + 0.01 * rows, 32),
        (lambda rows: 0.3 if rows == 1 else 0.3 + 0.1 * rows, 2),
        (lambda rows: 2.0 * rows, 1),
        (lambda rows: 2.0 + 0.01 * rows, 64),
    ],
    ids=["cpu", "large-gpu", "full-at-8", "overhead", "short", "slow", "offloaded"],
)
def test_kinds_of_devices(seconds: Callable[[int], float], rows: int) -> None:
    """One row is found where rows cost alike, many where calls cost, else what fills the device.

    Overhead: 0.34 s for 32 rows, over half a second for 64.
    """
    assert TimedUnet(seconds).measured().rows == rows


def test_the_first_call_of_a_size_is_not_measured() -> None:
    """The time to select kernels or compile changes nothing."""
    expected = TimedUnet(lambda rows: 0.01 * max(8, rows)).measured()
    assert TimedUnet(lambda rows: 0.01 * max(8, rows), first_s=30.0).measured() == expected


@pytest.mark.parametrize("held_up_s", [0.04, 0.2, 5.0])
@pytest.mark.parametrize("disturbed", [1, 8, 64])
def test_one_disturbed_call_changes_nothing(disturbed: int, held_up_s: float) -> None:
    """One call that other processes slow down does not change the result."""
    calls: list[int] = []

    def seconds(rows: int) -> float:
        calls.append(rows)
        hiccup_s = held_up_s if rows == disturbed and calls.count(rows) == 2 else 0.0
        return 0.001 * max(8, rows) + hiccup_s

    assert TimedUnet(seconds).measured().rows == 8


@pytest.mark.parametrize("holds", [1, 2, 3, 16, 63])
def test_memory_sets_the_limit(holds: int) -> None:
    """Where more rows do not fit, the largest number that did is used."""
    network = TimedUnet(lambda rows: 0.01 + 0.0001 * rows, holds=holds)
    assert network.measured().rows == max(rows for rows in TRIED_ROWS if rows <= holds)
    assert sum(rows > holds for rows in network.calls) == 1
    assert max(network.calls) <= 2 * holds


def test_a_device_without_memory_for_one_row() -> None:
    """Where not even one row fits, loading fails as out of memory."""
    with pytest.raises(torch.OutOfMemoryError):
        TimedUnet(lambda _: 0.01, holds=0).measured()


@pytest.mark.parametrize("max_rows", [2, 5, 256])
def test_a_setting_is_not_measured(max_rows: int) -> None:
    """With `max_batch_rows` nothing is measured: one call of two rows warms up.

    It holds for latents of the model's own size and smaller; larger ones get fewer.
    """
    network = TimedUnet(lambda _: 100.0)
    found = network.measured(max_rows)
    assert network.calls == [2]
    assert found.limit(4, 4) == max_rows
    assert found.limit(1, 1) == max_rows
    assert found.limit(8, 8) == max(1, max_rows // 4)


@pytest.mark.parametrize(("sample_size", "size"), [(6, (6, 6)), ((4, 9), (4, 9))])
def test_what_is_measured_is_a_call_of_the_models_size(
    sample_size: Any, size: tuple[int, int]
) -> None:
    """Latents, timesteps and embeddings have the shapes of a call at the model's own size."""
    network = TimedUnet(lambda rows: 0.2 * rows)
    found = network.measured(sample_size=sample_size)
    assert found.cells == size[0] * size[1]
    assert set(network.calls) == {1, 2, 4}
    for rows, (noisy, timesteps, conditioning) in zip(network.calls, network.inputs, strict=True):
        assert noisy.shape == (rows, 4, *size)
        assert len(timesteps) == rows
        assert conditioning[TEXT].shape == (rows, 7, 8)
        assert noisy.dtype == conditioning[TEXT].dtype == torch.float32
