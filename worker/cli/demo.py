"""`sag-worker demo`: starts servers and a worker, makes a few images, and stops everything."""

from __future__ import annotations

import signal
import sys
import textwrap
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from api_contracts import GenerationClient, GenerationError, GenerationResult
from worker import embedded
from worker.cli import download, progress
from worker.cli.console import printable
from worker.config.models import PIXELS, shipped_environment
from worker.exit_codes import FAILED, INTERRUPTED
from worker.supervisor.process_manager import describe_exit

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping
    from pathlib import Path
    from types import FrameType

    from rich.console import Console

PROMPTS = (
    "a large red star on a blue background",
    "a green ring left of a white square on a black background",
    "a large yellow circle on a purple background",
    "a small pink triangle at the top on a cyan background",
    "an orange cross above a blue circle on a white background",
    "a large white square on a green background",
)
#: Classes of the bundled pixel-space model, each drawn without SAG and, below, with it.
CLASSES = {33: "green star", 5: "blue circle", 42: "yellow ring"}
SAG_SCALES = (0.0, 1.0)
SEED = 7
BUCKET = "demo"
#: Longest time without an event of a task before the demo gives up, in seconds.
MAX_SILENCE_S = 120.0
#: Last characters of the worker's log, printed when it has exited.
LOG_TAIL_CHARS = 2000
#: Edge of an image on the contact sheet, and the space for its caption, in pixels.
TILE_PX, CAPTION_PX, GAP_PX = 256, 44, 12
COLUMNS = 3


def run_demo(prompt: str | None, out: Path, console: Console) -> int:
    """Make images of `prompt`, or of `PROMPTS` and `CLASSES`, in folder `out`; return the status.

    The last line on standard output is the path of the contact sheet.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a background job may inherit an ignored SIGINT
        signal.signal(number, _interrupt)
    started_s = time.monotonic()
    asked = _asked(prompt)
    titles = tuple(asked)
    try:
        with ExitStack() as stack:
            results = _make_images(stack, asked, console)
            files = _save(titles, results, out, console)
            console.print("stopping")
    except KeyboardInterrupt:
        console.print("[yellow]interrupted; everything is stopped")
        return INTERRUPTED
    except (GenerationError, RuntimeError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return FAILED
    duration_s = time.monotonic() - started_s
    console.print(f"{len(files)} of {len(titles)} images in {duration_s:.0f} s")
    if files:
        print(_contact_sheet(files, out))
    return 0 if len(files) == len(titles) else FAILED


def _asked(prompt: str | None) -> dict[str, dict[str, Any]]:
    """The requests by their titles: of one prompt, or of all prompts and then of classes."""
    prompts = PROMPTS if prompt is None else (prompt,)
    asked: dict[str, dict[str, Any]] = {text: {"prompt": text, "seed": SEED} for text in prompts}
    if prompt is None:
        for sag_scale in SAG_SCALES:
            for label, name in CLASSES.items():
                fields = {"class_labels": label, "sag_scale": sag_scale, "seed": SEED}
                title = f"class {label}, {name}: sag_scale {sag_scale:g}"
                asked[title] = {"model": PIXELS} | fields
    return asked


def _make_images(
    stack: ExitStack, asked: Mapping[str, dict[str, Any]], console: Console
) -> list[GenerationResult | GenerationError]:
    """Start Redis, S3 and a worker, to be stopped by `stack`, and follow a task of each request."""
    folder = stack.enter_context(embedded.scratch())
    url = stack.enter_context(embedded.redis_server(folder))
    s3 = stack.enter_context(embedded.s3_server(folder, BUCKET))
    console.print(f"[dim]Redis at {url}, S3 at {s3.endpoint_url}")
    environment = {
        **s3.environment,
        "SAG_BROKER_URL": url,
        **shipped_environment(),
        "SAG_S3_ENDPOINT_URL": s3.endpoint_url,
        "SAG_S3_BUCKET": BUCKET,
        "SAG_DRAIN_TIMEOUT_S": "1",
        # A task that failed on the only worker fails there again.
        "SAG_MAX_ATTEMPTS": "1",
    }
    log = folder / "worker.log"
    command = [sys.executable, "-m", "worker", "work"]
    worker = stack.enter_context(
        embedded.running(command, log, lambda: "ready." in _read(log), environment)
    )
    client = stack.enter_context(GenerationClient(url))
    handles = [client.submit(request) for request in asked.values()]
    results = progress.follow(handles, console, tuple(asked), partial(_give_up, worker))
    if worker.poll() is not None:
        tail = _read(log)[-LOG_TAIL_CHARS:]
        console.print(tail, style="dim", markup=False, highlight=False)
    return results


def _give_up(worker: subprocess.Popen[bytes], silent_s: float) -> str | None:
    """Return why no more events of a task are expected."""
    if (status := worker.poll()) is not None:
        return f"the worker exited ({describe_exit(status)}) before the task ended"
    if silent_s > MAX_SILENCE_S:
        return f"no event for {MAX_SILENCE_S:g} s"
    return None


def _read(log: Path) -> str:
    return log.read_text(errors="replace")


def _save(
    titles: tuple[str, ...],
    results: list[GenerationResult | GenerationError],
    out: Path,
    console: Console,
) -> list[tuple[str, Path]]:
    """Download the images; return each file with its title."""
    files = []
    for title, result in zip(titles, results, strict=True):
        if isinstance(result, GenerationError):
            text = printable(f"{title}: {result}")
            console.print(text, style="red", markup=False, highlight=False)
            continue
        words = "".join(char if char.isalnum() else " " for char in title).split()
        name = "-".join(words)[:60] or "image"
        files += [(title, download.save(image, name, out)) for image in result.images]
    return files


def _contact_sheet(files: list[tuple[str, Path]], out: Path) -> Path:
    """Save all images with their titles on one sheet; return its file."""
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415  # the worker extra

    columns = min(COLUMNS, len(files))
    rows = -(-len(files) // columns)
    cell_px = (TILE_PX + GAP_PX, TILE_PX + CAPTION_PX)
    sheet = Image.new("RGB", (columns * cell_px[0] + GAP_PX, rows * cell_px[1] + GAP_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (caption, file) in enumerate(files):
        x = GAP_PX + number % columns * cell_px[0]
        y = GAP_PX + number // columns * cell_px[1]
        with Image.open(file) as image:
            tile = image.convert("RGB").resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
        sheet.paste(tile, (x, y))
        lines = textwrap.wrap(caption, 38)[:2]
        draw.multiline_text((x, y + TILE_PX + 4), "\n".join(lines), "black", font, spacing=2)
    path = out / "contact-sheet.png"
    sheet.save(path)
    return path


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
