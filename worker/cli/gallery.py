"""Previews of tasks that run, side by side: what stands beneath their bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from worker.cli import terminal_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType

#: Rows of the preview of one task, and of each of several; a cell is twice as high as wide.
ALONE_ROWS, BESIDE_ROWS = 16, 10
#: In fewer rows nobody would recognise anything.
LEAST_ROWS = 4
#: Rows for the labels and a line to spare, and columns between two previews.
OTHER_ROWS, GAP = 2, 2


class Gallery:
    """The newest preview of each task: as many as there is room for."""

    def __init__(self, console: Console, labels: Sequence[str]) -> None:
        """One label for each task; it stands beneath the preview where there are several."""
        self._console = console
        self._labels = labels
        most = ALONE_ROWS if len(labels) == 1 else BESIDE_ROWS
        self._rows = min(most, console.height - len(labels) - OTHER_ROWS)
        self._drawn: dict[int, Text] = {}

    def put(self, number: int, url: str) -> None:
        """Draw the preview of task `number`; nothing where it can't be read or has no room."""
        data = terminal_image.from_data_url(url) if self._rows >= LEAST_ROWS else None
        if data is None:
            return
        most_px = terminal_image.MOST_PREVIEW_PX
        if (drawn := terminal_image.blocks(data, 2 * self._rows, self._rows, most_px)) is not None:
            self._drawn[number] = drawn

    def drop(self, number: int) -> None:
        """Take the preview of a task away that has ended."""
        self._drawn.pop(number, None)

    def __rich__(self) -> RenderableType:
        """All in a row, each with its label."""
        width = 2 * self._rows
        shown = sorted(self._drawn.copy().items())[: self._console.width // (width + GAP)]
        if not shown:
            return Group()
        grid = Table.grid(padding=(0, GAP, 0, 0))
        grid.add_row(*(drawn for _, drawn in shown))
        if len(self._labels) > 1:
            labels = [Text(self._labels[number][:width], "dim") for number, _ in shown]
            grid.add_row(*labels)
        return grid
