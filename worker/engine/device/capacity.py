"""How many rows a call of the UNet, or images a decode, may have: less after one did not fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

#: A lowered limit grows by this factor each time after so many calls: at first, and at most.
GROWTH, GROW_AFTER_CALLS, MAX_GROW_AFTER_CALLS = 1.25, 100, 10_000
#: Most rows that are measured, and so of any call without a setting.
MAX_ROWS = 64


@dataclass(frozen=True)
class Capacity:
    """Most rows of one UNet call, measured with latents of `cells` = height x width."""

    rows: float
    cells: int
    #: Limit for latents of any size.
    max_rows: int = MAX_ROWS
    #: What `rows` was before a call did not fit, and grows back to; 0 if all have fitted.
    measured_rows: float = 0.0
    #: Calls since `rows` was changed, and after how many of them it grows.
    calls: int = 0
    grow_after: int = GROW_AFTER_CALLS
    #: Whether `rows` has grown since a call did not fit.
    grown: bool = False

    def limit(self, height: int, width: int) -> int:
        """Most rows for latents of this size: time and memory of a row are proportional to it."""
        return min(self.max_rows, max(1, int(self.rows * self.cells / (height * width))))

    def halved(self, rows: int, height: int, width: int) -> Capacity:
        """The capacity after a call of `rows` rows of this size did not fit: half of them.

        But a row at least of this size or of the measured one, whichever is smaller. If the limit
        had grown, twice as many calls are waited for before it grows again.
        """
        size = height * width / self.cells
        return replace(
            self,
            rows=min(self.rows, max(rows * size / 2, min(size, 1.0))),
            measured_rows=max(self.rows, self.measured_rows),
            calls=0,
            grow_after=min(self.grow_after * (1 + self.grown), MAX_GROW_AFTER_CALLS),
            grown=False,
        )

    def after_call(self) -> Capacity:
        """The capacity after a call that fitted, of any number of rows: it may be time to grow.

        After one more wait at the measured rows all is as if no call had failed.
        """
        if not self.measured_rows:
            return self
        if self.calls + 1 < self.grow_after:
            return replace(self, calls=self.calls + 1)
        if self.rows == self.measured_rows:
            return Capacity(self.rows, self.cells, self.max_rows)
        grown_rows = min(self.measured_rows, self.rows * GROWTH)
        return replace(self, rows=grown_rows, calls=0, grown=True)
