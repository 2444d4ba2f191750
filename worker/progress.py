"""Tasks on a terminal: a bar for each, fed by its events, previews beneath; pictures on disk."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
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
from api_contracts.events import (
    Cancelled,
    Expired,
    Failed,
    Loading,
    Requeued,
    Started,
    Succeeded,
)
from api_contracts.events import Progress as Step
from api_contracts.follow import outcome
from worker.gallery import Gallery
from worker.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rich.console import Console, RenderableType
    from rich.progress import Task, TaskID

    from api_contracts import Event, ImageResult, TaskHandle

#: Time for a picture to arrive, in seconds.
DOWNLOAD_S = 60
#: How soon an interrupt is seen while a task is silent, in seconds.
LOOK_S = 1.0
#: Most bytes of a picture in one read: a record may claim any size, and memory is taken at once.
READ_BYTES = 2**16


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Answers are taken from where the record says and from nowhere else."""

    def redirect_request(self, *_: object) -> None:
        """Let a redirect be the error that any other refusal is."""


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


def save(image: ImageResult, name: str, folder: Path) -> Path:
    """Fetch a picture by its presigned URL into `folder`; gives the file."""
    return _written(folder / f"{name}-{printable(image.key.rsplit('/', 1)[-1])}", fetch(image))


def fetch(image: ImageResult, timeout_s: float = DOWNLOAD_S) -> bytes:
    """A picture by its presigned URL: what the worker stored, or a `GenerationError`."""
    if image.url is None:
        message = f"the worker presigns nothing (SAG_PRESIGN_S=0); fetch {image.key} yourself"
        raise GenerationError(message)
    if not image.url.startswith(("http://", "https://")):  # urllib would read files, too
        raise GenerationError(f"the URL of {image.key} is none of http or https")
    try:
        data = _read(image.url, image.bytes + 1, timeout_s)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: what is no URL
        message = f"could not fetch {image.key}: {error}"
        raise GenerationError(message) from error
    if hashlib.sha256(data).hexdigest() != image.sha256:
        message = f"what came for {image.key} is not what the worker stored"
        raise GenerationError(message)
    return data


def _read(url: str, most_bytes: int, timeout_s: float) -> bytes:
    """What a URL gives, at most so much of it."""
    data = bytearray()
    opener = urllib.request.build_opener(_NoRedirect)
    with opener.open(url, timeout=timeout_s) as answer:
        while some := answer.read(min(READ_BYTES, most_bytes - len(data))):
            data += some
    return bytes(data)


def _written(path: Path, data: bytes) -> Path:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # as where the name is too long for any file
            temporary.unlink(missing_ok=True)
        message = f"could not write {path}: {error}"
        raise GenerationError(message) from error
    return path
