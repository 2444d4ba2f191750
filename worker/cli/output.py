"""The output of `submit --wait` and `watch`: URLs or files, images, or JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from api_contracts import GenerationError
from worker.cli import download, progress, terminal_image
from worker.cli.console import console, or_exit, printable
from worker.exit_codes import FAILED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from api_contracts import ImageResult, TaskHandle
    from worker.cli.terminal_image import Preview

#: Time limit of a download that is only for showing, in seconds.
SHOW_TIMEOUT_S = 10.0


def follow(
    handles: Sequence[TaskHandle], out: Path | None, preview: Preview, *, machine: bool
) -> None:
    """Follow tasks and print how they end; exits with 1 unless all succeeded."""
    is_drawn = not machine and terminal_image.can_draw(preview, console, os.environ)
    if machine:
        results = [_print_events(handle) for handle in handles]
    else:
        results = or_exit(lambda: progress.follow(handles, console, previews=is_drawn))
    for handle, result in zip(handles, results, strict=True):
        if isinstance(result, GenerationError):
            text = printable(f"{handle.task_id}: {result}")
            console.print(text, style="red", markup=False, soft_wrap=True)
            continue
        for image in result.images:
            path = None
            if out:
                path = or_exit(lambda: download.save(image, handle.task_id, out))  # noqa: B023  # called at once
                print(json.dumps({"file": str(path)}) if machine else path)
            elif not machine:
                print(printable(image.url or image.key))
            if is_drawn and image.key.endswith(terminal_image.SUFFIXES):
                _show(image, path)
    if any(isinstance(result, GenerationError) for result in results):
        sys.exit(FAILED)


def _show(image: ImageResult, path: Path | None) -> None:
    """Draw an image beneath its URL or file; print the reason when it cannot be read."""
    sys.stdout.flush()
    try:
        data = _read(image, path)
    except (GenerationError, OSError) as error:
        text = printable(f"not shown: {error}")
        console.print(text, style="dim", markup=False, soft_wrap=True)
        return
    terminal_image.show(data, console)


def _read(image: ImageResult, path: Path | None) -> bytes:
    if image.bytes > terminal_image.MAX_BYTES:
        max_mib = terminal_image.MAX_BYTES >> 20
        raise GenerationError(
            f"{image.key} has {image.bytes} bytes, shown are at most {max_mib} MiB"
        )
    return path.read_bytes() if path else download.fetch(image, SHOW_TIMEOUT_S)


def _print_events(handle: TaskHandle) -> Any:  # noqa: ANN401  # a result or its error
    """Print each event of a task as JSON as it comes; return its result or its error."""

    def follow() -> None:
        for event in handle.events():
            print(printable(event.model_dump_json()), flush=True)

    or_exit(follow)
    try:
        return handle.result()
    except GenerationError as error:
        return error
