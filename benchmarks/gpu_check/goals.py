"""The goals of the project on a GPU, and how far the numbers of a run reach them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.gpu_check.given import ROWS_A_STEP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.gpu_check.outcome import Outcome

#: Where the first two goals are measured: waiting tasks, and rows of a call beside it.
WAITING, ROWS = 16, 16


@dataclass(frozen=True)
class Goal:
    """Something wanted, and what was found; None where the number is missing."""

    what: str
    wanted: float
    found: float | None
    unit: str
    how: str

    @property
    def verdict(self) -> str:
        """In one word or two."""
        if self.found is None:
            return "no number"
        return "reached" if self.found >= self.wanted else "missed"


def judge(outcomes: Sequence[Outcome], steps: int) -> list[Goal]:
    """Every goal; `steps` are those of a picture of the throughput's part."""
    numbers: dict[str, float] = {}
    for outcome in outcomes:
        numbers |= outcome.numbers
    modes = {
        mode: numbers.get(f"{mode}_times_the_loop_at_{WAITING}") for mode in ("eager", "graphs")
    }
    measured = {mode: value for mode, value in modes.items() if value is not None}
    best = max(measured, key=lambda mode: measured[mode], default=None)
    share = _share(numbers, best or "eager", steps)
    calls = max((v for k, v in numbers.items() if k.startswith("share_percent_at_")), default=None)
    return [
        Goal(
            f"Pictures a second against upstream's loop, {WAITING} waiting",
            2.5,
            None if best is None else measured[best],
            "times",
            f"throughput, {best}" if best else "throughput",
        ),
        Goal(
            "Share of the matrix peak that the whole engine reaches at 512 px",
            35.0,
            share,
            "%",
            f"pictures a second with the most waiting x {ROWS_A_STEP} rows a step x the work of a "
            "row, over the peak; decoding counts as time, not as work",
        ),
        Goal(
            "Share of the matrix peak that calls of the UNet alone reach at 512 px",
            35.0,
            calls,
            "%",
            "arithmetic, the best number of rows",
        ),
        Goal(
            "The daemon's pictures a second against its bare engine's",
            0.98,
            numbers.get("daemon_share"),
            "times",
            "daemon, best turn of each",
        ),
    ]


def _share(numbers: Mapping[str, float], mode: str, steps: int) -> float | None:
    """Percent of the peak that the engine's throughput is; None where a number is missing."""
    speed = numbers.get(f"{mode}_pictures_per_s")
    peak, row = numbers.get("peak_tflop_per_s"), numbers.get("tflop_a_row")
    if speed is None or peak is None or row is None:
        return None
    return 100 * speed * steps * ROWS_A_STEP * row / peak
