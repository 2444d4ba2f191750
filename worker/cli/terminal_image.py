"""Draws images in a terminal as half blocks in colour.

Never into a pipe. An image may come from anyone: its size is bounded, and one that cannot be
decoded is not drawn.
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

#: Most rows of a finished image, and rows of the terminal that are left for other lines.
MAX_ROWS, OTHER_ROWS = 20, 4
#: Largest preview, as its data URL and in pixels: a few bytes may claim any size.
MAX_URL_CHARS, MAX_PREVIEW_PX = 2**18, 2**20
#: Largest finished image, as its file and in pixels.
MAX_BYTES, MAX_PX = 2**25, 2**24
#: File names of images that can be drawn.
SUFFIXES = (".png", ".jpg", ".webp")
_JPEG_URL = "data:image/jpeg;base64,"


class Preview(StrEnum):
    """Whether images are drawn; `auto` and `blocks` are the same."""

    AUTO = "auto"
    BLOCKS = "blocks"
    NONE = "none"


def can_draw(wanted: Preview, console: Console, environment: Mapping[str, str]) -> bool:
    """Whether images are wanted and can be drawn.

    Both outputs must be terminals with at least 256 colours, without `NO_COLOR`; Pillow, of the
    worker extra, must be installed.
    """
    return (
        wanted is not Preview.NONE
        and sys.stdout.isatty()
        and sys.stderr.isatty()
        and environment.get("TERM", "") not in ("", "dumb")
        and not console.no_color
        and console.color_system in ("256", "truecolor")
        and importlib.util.find_spec("PIL") is not None
    )


def show(data: bytes, console: Console) -> None:
    """Print a finished image; nothing when it cannot be decoded."""
    rows = max(1, min(MAX_ROWS, console.height - OTHER_ROWS))
    if (drawn := draw(data, console.width, rows)) is not None:
        console.print(drawn)


def draw(data: bytes, columns: int, rows: int, max_px: int = MAX_PX) -> Text | None:
    """Return an image as half blocks, two pixels to a cell; None when it cannot be decoded."""
    if (image := _decode(data, (columns, 2 * rows), max_px)) is None:
        return None
    lines, width = [], image.width
    raw = image.tobytes()
    for top in range(0, len(raw), 6 * width):  # two rows of three bytes a pixel
        upper, lower = raw[top : top + 3 * width], raw[top + 3 * width : top + 6 * width]
        line = Text()
        for at in range(0, 3 * width, 3):
            background = Color.from_rgb(*lower[at : at + 3]) if lower else None
            line.append("▀", Style(color=Color.from_rgb(*upper[at : at + 3]), bgcolor=background))
        lines.append(line)
    return Text("\n", no_wrap=True, overflow="crop").join(lines)


def from_data_url(url: str) -> bytes | None:
    """Return the JPEG of a progress event; None for anything else or a URL that is too long."""
    if not url.startswith(_JPEG_URL) or len(url) > MAX_URL_CHARS:
        return None
    try:
        return base64.b64decode(url.removeprefix(_JPEG_URL), validate=True)
    except binascii.Error:
        return None


def _decode(data: bytes, room_px: tuple[int, int], max_px: int) -> Image.Image | None:
    """Return an image in RGB, reduced to fit; None when it is broken or larger than `max_px`."""
    from PIL import Image  # noqa: PLC0415  # the worker extra

    _silence_pillow()
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            if image.width * image.height > max_px:
                return None
            image.thumbnail(room_px)
            return image.convert("RGB")
    # Of a broken file Pillow's decoders raise anything, AssertionError among it. All of it means
    # that there is no image to draw.
    except Exception:  # noqa: BLE001  # as above
        return None


@cache
def _silence_pillow() -> None:
    """Ignore Pillow's warnings, which would be printed between the progress bars.

    Once: the filters belong to the process, and previews are decoded in many threads.
    """
    warnings.filterwarnings("ignore", module=r"PIL\b")
