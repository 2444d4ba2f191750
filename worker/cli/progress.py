"""Follows tasks on a terminal: a bar for each, fed by its events, with previews beneath."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rich.console import Group
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from api_contracts import GenerationError, GenerationResult, WaitTimeout
from api_contracts.client.follow import outcome
from api_contracts.events import (
    Cancelled,
    Expired,
    Failed,
    Loading,
    Queued,
    Requeued,
    Started,
    Succeeded,
)
from api_contracts.events import Progress as Step
from worker.cli import terminal_image
from worker.cli.console import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console, RenderableType
    from rich.progress import Task, TaskID

    from api_contracts import Event, TaskHandle

    #: Given the seconds since a task's last event, returns why it is not followed any longer.
    GiveUp = Callable[[float], str | None]

#: An interrupt, and a reason to give up, are noticed within this time, in seconds.
POLL_INTERVAL_S = 1.0
#: Rows of the preview of a single task, and of each of several; a cell is twice as high as wide.
SINGLE_ROWS, ROWS = 16, 10
#: Fewest rows in which a preview is recognisable.
MIN_ROWS = 4
#: Rows for the labels and a spare line, and columns between two previews.
OTHER_ROWS, GAP = 2, 2


class Gallery:
    """The latest preview of each running task, as many as there is room for."""

    def __init__(self, console: Console, labels: Sequence[str]) -> None:
        """Take one label for each task, printed beneath its preview if there are several."""
        self._console = console
        self._labels = labels
        rows = SINGLE_ROWS if len(labels) == 1 else ROWS
        self._rows = min(rows, console.height - len(labels) - OTHER_ROWS)
        self._drawn: dict[int, Text] = {}

    def put(self, number: int, url: str) -> None:
        """Draw the preview of task `number`; keep the last one when it cannot be decoded."""
        data = terminal_image.from_data_url(url) if self._rows >= MIN_ROWS else None
        if data is None:
            return
        columns, max_px = 2 * self._rows, terminal_image.MAX_PREVIEW_PX
        if (drawn := terminal_image.draw(data, columns, self._rows, max_px)) is not None:
            self._drawn[number] = drawn

    def remove(self, number: int) -> None:
        """Remove the preview of an ended task."""
        self._drawn.pop(number, None)

    def __rich__(self) -> RenderableType:
        """Return the previews side by side, each with its label."""
        width = 2 * self._rows
        shown = sorted(self._drawn.copy().items())[: self._console.width // (width + GAP)]
        if not shown:
            return Group()
        grid = Table.grid(padding=(0, GAP, 0, 0))
        grid.add_row(*(drawn for _, drawn in shown))
        if len(self._labels) > 1:
            grid.add_row(*(Text(self._labels[number][:width], "dim") for number, _ in shown))
        return grid


class _State(ProgressColumn):
    """The text behind the bar, without markup: it comes from events."""

    def render(self, task: Task) -> Text:
        """Return the text that `_state` made."""
        state: Text = task.fields["state"]
        return state


class _Bars(Progress):
    """A bar for each task, and the previews beneath."""

    def __init__(self, console: Console, gallery: Gallery | None) -> None:
        self.gallery = gallery
        super().__init__(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=30),
            MofNCompleteColumn(), TimeElapsedColumn(), _State(Column(no_wrap=True)),
            console=console, refresh_per_second=4 if gallery else 10,  # previews are long to send
        )  # fmt: skip

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield what rich redraws several times a second."""
        yield from super().get_renderables()
        if self.gallery:
            yield self.gallery


def follow(
    handles: Sequence[TaskHandle],
    console: Console,
    labels: Sequence[str] | None = None,
    give_up: GiveUp = lambda _: None,
    *,
    previews: bool = False,
) -> list[GenerationResult | GenerationError]:
    """Follow tasks together, with a bar for each; return each one's result or its error.

    `previews`: draw the previews of their events.
    """
    labels = [printable(each) for each in labels or [handle.task_id for handle in handles]]
    gallery = Gallery(console, labels) if previews else None
    with _Bars(console, gallery) as bars, ThreadPoolExecutor(len(handles)) as threads:
        rows = [bars.add_task(label, total=None, state=Text("queued", "dim")) for label in labels]
        stop = threading.Event()
        jobs = [
            threads.submit(_follow_one, handle, bars, row, give_up, stop)
            for handle, row in zip(handles, rows, strict=True)
        ]
        try:
            return [job.result() for job in jobs]
        finally:
            stop.set()


def _follow_one(
    handle: TaskHandle, bars: _Bars, row: TaskID, give_up: GiveUp, stop: threading.Event
) -> GenerationResult | GenerationError:
    last_seq, last_event_s = 0, time.monotonic()
    while not stop.is_set():
        # Called before events are read, so that events of a worker that has exited are read.
        reason = give_up(time.monotonic() - last_event_s)
        try:
            for event in handle.events(last_seq, timeout=POLL_INTERVAL_S):
                last_seq, last_event_s = event.seq, time.monotonic()
                if (result := _show(event, bars, row)) is not None:
                    return result
        except WaitTimeout:
            if reason is not None:
                return GenerationError(reason)
    return GenerationError("interrupted before the task ended")


def _show(event: Event, bars: _Bars, row: TaskID) -> GenerationResult | GenerationError | None:
    """Update the bar; return the outcome when the event is the last."""
    if isinstance(event, Step):
        bars.update(row, completed=event.step, total=event.total_steps)
        if bars.gallery and event.preview:
            bars.gallery.put(row, event.preview)
    bars.update(row, state=_state(event))
    if not event.is_terminal:
        return None
    if bars.gallery:
        bars.gallery.remove(row)
    try:
        return outcome(event)
    except GenerationError as error:
        return error


def _state(event: Event) -> Text:
    """Return the text behind the bar."""
    style = "dim"
    match event:
        case Queued(position=int(position)) if position:
            state = f"queued, {position} before it"
        case Started(device=device):
            state = f"started on {device}"
        case Loading(seconds_so_far=seconds):
            state = f"loading the model, {seconds:.0f} s"
        case Step(eta_s=left_s):
            state = f"{left_s or 0:.0f} s left"
        case Requeued(reason=reason):
            state = f"requeued: {reason}"
        case Succeeded():
            state, style = "done", "dim green"
        case Failed(error=error):
            state, style = str(error.code), "dim red"
        case Cancelled() | Expired():
            state, style = event.type, "dim yellow"
        case _:
            state = str(event.type)
    return Text(printable(state), style)
