"""Pictures in a terminal: by kitty's or iTerm2's protocol, or as half blocks in colour.

Never in a pipe. What is shown may come from anybody: its size is bounded, and what can't be read
is not shown. Without Pillow nobody looks at the pixels: the bytes alone are bounded.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
import io
import sys
import warnings
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING

from rich.color import Color
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL import Image
    from rich.console import Console

#: Most rows of a finished picture, and rows of the terminal that are left for other lines.
ROWS, OTHER_ROWS = 20, 4
#: Largest preview, as its data URL and in pixels: a few bytes may claim any size.
MOST_URL_CHARS, MOST_PREVIEW_PX = 2**18, 2**20
#: Largest finished picture, as its file and in pixels.
MOST_BYTES, MOST_PX = 2**25, 2**24
#: Base64 characters in one of kitty's messages: its own limit.
CHUNK = 4096
#: How the names of files end that terminals show, and how they begin.
SUFFIXES = (".png", ".jpg", ".webp")
_PNG, _JPEG, _WEBP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"
_JPEG_URL = "data:image/jpeg;base64,"


class Preview(StrEnum):
    """How pictures are shown; `auto` is what the terminal is known to understand."""

    AUTO = "auto"
    KITTY = "kitty"
    ITERM2 = "iterm2"
    BLOCKS = "blocks"
    NONE = "none"


def choose(wanted: Preview, console: Console, environment: Mapping[str, str]) -> Preview:
    """The way that is taken; `NONE` where any output is no terminal, whatever is wanted."""
    terminal = environment.get("TERM", "")
    if not (sys.stdout.isatty() and sys.stderr.isatty()) or terminal in ("", "dumb"):
        return Preview.NONE
    if wanted is Preview.AUTO:
        wanted = _understood(terminal, environment)
    if wanted in (Preview.KITTY, Preview.ITERM2) and (
        "TMUX" in environment or terminal.startswith(("tmux", "screen"))
    ):
        wanted = Preview.BLOCKS  # neither lets the other protocols through
    if wanted is Preview.BLOCKS and not can_draw(console):
        return Preview.NONE
    return wanted


def _understood(terminal: str, environment: Mapping[str, str]) -> Preview:
    program = environment.get("TERM_PROGRAM", "").lower()
    if program in ("iterm.app", "wezterm") or environment.get("LC_TERMINAL") == "iTerm2":
        return Preview.ITERM2
    if (
        "KITTY_WINDOW_ID" in environment
        or terminal in ("xterm-kitty", "xterm-ghostty")
        or program == "ghostty"
    ):
        return Preview.KITTY
    return Preview.BLOCKS


def can_draw(console: Console) -> bool:
    """Whether half blocks can be told apart: at least 256 colours, not `NO_COLOR`, and Pillow."""
    colours = not console.no_color and console.color_system in ("256", "truecolor")
    return colours and _has_pillow()


def show(data: bytes, size_px: tuple[int, int], way: Preview, console: Console) -> None:
    """Print a finished picture of that width and height; nothing when it can't be read."""
    width_px, height_px = size_px
    # A cell is about twice as high as wide.
    fitting = console.width * height_px // (2 * max(1, width_px))
    rows = max(1, min(ROWS, console.height - OTHER_ROWS, fitting))
    if not data.startswith((_PNG, _JPEG, _WEBP)) or (_has_pillow() and not _read(data, (1, 1))):
        return
    match way:
        case Preview.KITTY:
            png = data if data.startswith(_PNG) else _as_png(data)
            told = kitty(png, rows) if png else None
        case Preview.ITERM2:
            told = iterm2(data, rows)
        case _:
            told = None
            if (drawn := blocks(data, console.width, rows)) is not None:
                console.print(drawn)
    if told is not None:
        console.file.write(f"{told}\n")
        console.file.flush()


def kitty(png: bytes, rows: int) -> str:
    """A PNG as kitty's graphics protocol has it, `rows` high; the terminal is to answer nothing.

    https://sw.kovidgoyal.net/kitty/graphics-protocol/
    """
    text = base64.standard_b64encode(png).decode()
    chunks = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
    first, last = f"a=T,f=100,q=2,r={rows},", len(chunks) - 1
    return "".join(
        f"\x1b_G{'' if number else first}m={int(number < last)};{chunk}\x1b\\"
        for number, chunk in enumerate(chunks)
    )


def iterm2(file: bytes, rows: int) -> str:
    """A file as iTerm2's inline images have it, `rows` high.

    https://iterm2.com/documentation-images.html
    """
    text = base64.standard_b64encode(file).decode()
    options = f"inline=1;size={len(file)};height={rows};preserveAspectRatio=1"
    return f"\x1b]1337;File={options}:{text}\x07"


def blocks(data: bytes, columns: int, rows: int, most_px: int = MOST_PX) -> Text | None:
    """A picture of half blocks, two pixels to a cell; None when it can't be read."""
    if (picture := _read(data, (columns, 2 * rows), most_px)) is None:
        return None
    lines, width = [], picture.width
    raw = picture.tobytes()
    for top in range(0, len(raw), 6 * width):  # two rows of three bytes a pixel
        upper, lower = raw[top : top + 3 * width], raw[top + 3 * width : top + 6 * width]
        line = Text()
        for at in range(0, 3 * width, 3):
            under = Color.from_rgb(*lower[at : at + 3]) if lower else None
            over = Color.from_rgb(*upper[at : at + 3])
            line.append("▀", Style(color=over, bgcolor=under))
        lines.append(line)
    return Text("\n", no_wrap=True, overflow="crop").join(lines)


def from_data_url(url: str) -> bytes | None:
    """The JPEG of a progress event; None when it is none, or larger than any preview."""
    if not url.startswith(_JPEG_URL) or len(url) > MOST_URL_CHARS:
        return None
    try:
        return base64.b64decode(url.removeprefix(_JPEG_URL), validate=True)
    except binascii.Error:
        return None


def _as_png(data: bytes) -> bytes | None:
    """Any picture as a PNG; None when it can't be read."""
    if not _has_pillow() or (picture := _read(data)) is None:
        return None
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _read(
    data: bytes, room_px: tuple[int, int] | None = None, most_px: int = MOST_PX
) -> Image.Image | None:
    """A picture in RGB, made to fit; None when it can't be read, or claims to be huge."""
    from PIL import Image  # noqa: PLC0415  # the worker extra

    _hush()
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as picture:
            if picture.width * picture.height > most_px:
                return None
            if room_px:
                picture.thumbnail(room_px)
            return picture.convert("RGB")
    # Of broken files Pillow raises whatever its many decoders meet, AssertionError among it: to
    # whoever watches a task any of it means that there is no picture.
    except Exception:  # noqa: BLE001
        return None


@cache
def _hush() -> None:
    """Ignore Pillow's warnings: they would stand amid the bars.

    Once: the filters are the process's, and previews are read in many threads.
    """
    warnings.filterwarnings("ignore", module=r"PIL\b")


def _has_pillow() -> bool:
    return importlib.util.find_spec("PIL") is not None
