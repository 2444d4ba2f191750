"""What `submit --wait` and `watch` tell of tasks: URLs or files, pictures, or JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from api_contracts import GenerationError
from worker.cli import download, progress, terminal_image
from worker.cli.console import console, or_exit, printable
from worker.cli.terminal_image import Preview
from worker.exit_codes import FAILED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from api_contracts import ImageResult, TaskHandle

#: Longest wait for a picture that is only to be shown, in seconds.
SHOW_S = 10.0


def follow(
    handles: Sequence[TaskHandle], out: Path | None, preview: Preview, *, machine: bool
) -> None:
    """Tell how tasks end; the exit status says whether all succeeded."""
    way = Preview.NONE if machine else terminal_image.choose(preview, console, os.environ)
    if machine:
        ends = [_told(handle) for handle in handles]
    else:
        drawn = way is not Preview.NONE and terminal_image.can_draw(console)
        ends = or_exit(lambda: progress.follow(handles, console, previews=drawn))
    for handle, end in zip(handles, ends, strict=True):
        if isinstance(end, GenerationError):
            told = printable(f"{handle.task_id}: {end}")
            console.print(told, style="red", markup=False, soft_wrap=True)
            continue
        for image in end.images:
            path = None
            if out:
                path = or_exit(lambda: download.save(image, handle.task_id, out))  # noqa: B023  # called at once
                print(json.dumps({"file": str(path)}) if machine else path)
            elif not machine:
                print(printable(image.url or image.key))
            if way is not Preview.NONE and image.key.endswith(terminal_image.SUFFIXES):
                _show(image, path, way)
    if any(isinstance(end, GenerationError) for end in ends):
        sys.exit(FAILED)


def _show(image: ImageResult, path: Path | None, way: Preview) -> None:
    """The picture in the terminal, beneath its URL or file; what can't be had is only told."""
    sys.stdout.flush()
    try:
        data = _data(image, path)
    except (GenerationError, OSError) as error:
        told = printable(f"not shown: {error}")
        console.print(told, style="dim", markup=False, soft_wrap=True)
        return
    terminal_image.show(data, (image.width, image.height), way, console)


def _data(image: ImageResult, path: Path | None) -> bytes:
    if image.bytes > terminal_image.MOST_BYTES:
        most_mib = terminal_image.MOST_BYTES >> 20
        message = f"{image.key} has {image.bytes} bytes; shown are at most {most_mib} MiB"
        raise GenerationError(message)
    return path.read_bytes() if path else download.fetch(image, SHOW_S)


def _told(handle: TaskHandle) -> Any:  # noqa: ANN401  # a result or its error
    """A task's end, after each of its events was printed as it came."""

    def follow() -> None:
        for event in handle.events():
            print(printable(event.model_dump_json()), flush=True)

    or_exit(follow)
    try:
        return handle.result()
    except GenerationError as error:
        return error
