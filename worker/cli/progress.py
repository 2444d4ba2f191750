"""Tasks on a terminal: a bar for each, fed by its events, previews beneath."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
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
from worker.cli.console import printable
from worker.cli.gallery import Gallery

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console, RenderableType
    from rich.progress import Task, TaskID

    from api_contracts import Event, TaskHandle

#: How soon an interrupt is seen while a task is silent, in seconds.
LOOK_S = 1.0


class _State(ProgressColumn):
    """What stands behind the bar; no markup, as it comes out of events."""

    def render(self, task: Task) -> Text:
        """The text that `_state` made."""
        state: Text = task.fields["state"]
        return state


class _Bars(Progress):
    """A bar for each task, and beneath them their previews."""

    def __init__(self, console: Console, gallery: Gallery | None) -> None:
        self.gallery = gallery
        super().__init__(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=30),
            MofNCompleteColumn(), TimeElapsedColumn(), _State(Column(no_wrap=True)),
            console=console, refresh_per_second=4 if gallery else 10,
        )  # fmt: skip

    def get_renderables(self) -> Iterator[RenderableType]:
        """What rich draws anew some times a second; previews are long to send."""
        yield from super().get_renderables()
        if self.gallery:
            yield self.gallery


def follow(
    handles: Sequence[TaskHandle],
    console: Console,
    labels: Sequence[str] | None = None,
    timeout: float | None = None,
    *,
    previews: bool = False,
) -> list[GenerationResult | GenerationError]:
    """Follow tasks together, a bar for each; gives each one's result or its error.

    `timeout` is the longest silence of one task, in seconds. `previews`: draw them, too.
    """
    labels = [printable(each) for each in labels or [handle.task_id for handle in handles]]
    gallery = Gallery(console, labels) if previews else None
    with _Bars(console, gallery) as bars, ThreadPoolExecutor(len(handles)) as threads:
        rows = [bars.add_task(label, total=None, state=Text("queued", "dim")) for label in labels]
        stop = threading.Event()
        jobs = [
            threads.submit(_one, handle, bars, row, timeout, stop)
            for handle, row in zip(handles, rows, strict=True)
        ]
        try:
            return [job.result() for job in jobs]
        finally:
            stop.set()


def _one(
    handle: TaskHandle, bars: _Bars, row: TaskID, timeout: float | None, stop: threading.Event
) -> GenerationResult | GenerationError:
    after, heard_s = 0, time.monotonic()
    while not stop.is_set():
        try:
            for event in handle.events(after, timeout=LOOK_S):
                after, heard_s = event.seq, time.monotonic()
                if (outcome := _shown(event, bars, row)) is not None:
                    return outcome
        except WaitTimeout as error:
            if timeout is not None and time.monotonic() - heard_s > timeout:
                return error
    return GenerationError("not followed to its end")


def _shown(event: Event, bars: _Bars, row: TaskID) -> GenerationResult | GenerationError | None:
    """Move the bar as the event says; the outcome, when it is the last."""
    if isinstance(event, Step):
        bars.update(row, completed=event.step, total=event.total_steps)
        if bars.gallery and event.preview:
            bars.gallery.put(row, event.preview)
    bars.update(row, state=_state(event))
    if not event.is_terminal:
        return None
    if bars.gallery:
        bars.gallery.drop(row)
    try:
        return outcome(event)
    except GenerationError as error:
        return error


def _state(event: Event) -> Text:
    """What stands behind the bar."""
    style = "dim"
    match event:
        case Queued(position=int(before)) if before:
            state = f"queued, {before} before it"
        case Started(device=device):
            state = f"started on {device}"
        case Loading(seconds_so_far=seconds):
            state = f"loading the model, {seconds:.0f} s"
        case Step(eta_s=left_s):
            state = f"{left_s or 0:.0f} s left"
        case Requeued(reason=reason):
            state = f"queued again: {reason}"
        case Succeeded():
            state, style = "done", "dim green"
        case Failed(error=error):
            state, style = str(error.code), "dim red"
        case Cancelled() | Expired():
            state, style = event.type, "dim yellow"
        case _:
            state = str(event.type)
    return Text(printable(state), style)
