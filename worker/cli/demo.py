"""The whole service on one machine for a minute: servers, worker, a few pictures, and an end."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

from api_contracts import GenerationClient, GenerationError, GenerationResult
from worker import embedded
from worker.cli import download, progress
from worker.cli.console import printable
from worker.exit_codes import INTERRUPTED

if TYPE_CHECKING:
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
SEED = 7
BUCKET = "demo"
#: Longest silence of a task before the demo gives up, in seconds.
SILENCE_S = 120.0
#: Edge of a picture on the contact sheet, and the space for its caption, in pixels.
TILE_PX, CAPTION_PX, GAP_PX = 256, 44, 12
COLUMNS = 3


def run_demo(prompt: str | None, out: Path, console: Console) -> int:
    """Make pictures of `prompt`, or of `PROMPTS`, into `out`; gives the exit status.

    The last line on standard output is the path of the contact sheet.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # in a background job SIGINT may be ignored
        signal.signal(number, _interrupt)
    began_s = time.monotonic()
    prompts = (prompt,) if prompt else PROMPTS
    try:
        with ExitStack() as stack:
            client = _start(stack, console)
            results = _submit(client, prompts, console)
            files = _save(prompts, results, out, console)
            console.print("stopping")
    except KeyboardInterrupt:
        console.print("[yellow]interrupted; everything is stopped")
        return INTERRUPTED
    except (GenerationError, RuntimeError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    console.print(f"{len(files)} of {len(prompts)} pictures in {time.monotonic() - began_s:.0f} s")
    if files:
        print(_contact_sheet(files, out))
    return 0 if len(files) == len(prompts) else 1


def _start(stack: ExitStack, console: Console) -> GenerationClient:
    """Redis, S3, a worker that answers, and a client; each is ended by `stack`."""
    folder = stack.enter_context(embedded.scratch())
    url = stack.enter_context(embedded.redis_server(folder))
    s3 = stack.enter_context(embedded.s3_server(folder, BUCKET))
    console.print(f"[dim]Redis at {url}, S3 at {s3.endpoint_url}")
    environment = {
        **s3.environment,
        "SAG_BROKER_URL": url,
        "SAG_S3_ENDPOINT_URL": s3.endpoint_url,
        "SAG_S3_BUCKET": BUCKET,
        "SAG_DRAIN_TIMEOUT_S": "1",
    }
    log = folder / "worker.log"
    command = [sys.executable, "-m", "worker", "work"]
    stack.enter_context(embedded.running(command, log, lambda: _ready(log), environment))
    return stack.enter_context(GenerationClient(url))


def _ready(log: Path) -> bool:
    return "ready." in log.read_text(errors="replace")


def _submit(
    client: GenerationClient, prompts: tuple[str, ...], console: Console
) -> list[GenerationResult | GenerationError]:
    handles = [client.submit({"prompt": text, "seed": SEED}) for text in prompts]
    return progress.follow(handles, console, labels=prompts, timeout=SILENCE_S)


def _save(
    prompts: tuple[str, ...],
    results: list[GenerationResult | GenerationError],
    out: Path,
    console: Console,
) -> list[tuple[str, Path]]:
    """Fetch the pictures; gives each with its caption."""
    files = []
    for prompt, result in zip(prompts, results, strict=True):
        if isinstance(result, GenerationError):
            told = printable(f"{prompt}: {result}")
            console.print(told, style="red", markup=False, highlight=False)
            continue
        name = (
            "-".join("".join(c if c.isalnum() else " " for c in prompt).split())[:60] or "picture"
        )
        files += [(prompt, download.save(image, name, out)) for image in result.images]
    return files


def _contact_sheet(files: list[tuple[str, Path]], out: Path) -> Path:
    """All pictures with their prompts on one sheet."""
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415  # the worker extra

    columns = min(COLUMNS, len(files))
    rows = -(-len(files) // columns)
    cell_px = (TILE_PX + GAP_PX, TILE_PX + CAPTION_PX)
    sheet = Image.new("RGB", (columns * cell_px[0] + GAP_PX, rows * cell_px[1] + GAP_PX), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (caption, file) in enumerate(files):
        x = GAP_PX + number % columns * cell_px[0]
        y = GAP_PX + number // columns * cell_px[1]
        with Image.open(file) as picture:
            sheet.paste(
                picture.convert("RGB").resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS), (x, y)
            )
        pen.multiline_text((x, y + TILE_PX + 4), _wrapped(caption), "black", font, spacing=2)
    path = out / "contact-sheet.png"
    sheet.save(path)
    return path


def _wrapped(text: str, width: int = 38) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width and lines[-1]:
            lines.append("")
        lines[-1] += f"{word} "
    return "\n".join(lines[:2])


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
