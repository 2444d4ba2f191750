"""Terminals that print to memory, and images for them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Literal

from PIL import Image
from rich.console import Console

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 254, 1), (1, 2, 253), (9, 9, 9)


def terminal(
    colours: Literal["standard", "256", "truecolor"] | None = "truecolor",
    width: int = 80,
    height: int = 24,
    *,
    no_color: bool = False,
) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, color_system=colours, width=width, height=height,
        no_color=no_color, legacy_windows=False, _environ={},
    )  # fmt: skip


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def flat(size: tuple[int, int], colour: tuple[int, int, int] = RED, kind: str = "PNG") -> bytes:
    return encoded(Image.new("RGB", size, colour), kind)


def chunk(name: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + checksum


def claimed(side_px: int, bits: int = 8, kind: int = 2, palette: bytes = b"") -> bytes:
    """A PNG of a few bytes whose header claims a square of that side."""
    header = struct.pack(">IIBBBBB", side_px, side_px, bits, kind, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette
    return start + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


#: A transparent colour without a palette: Pillow raises AssertionError.
NO_PALETTE = claimed(4, bits=1, kind=3, palette=chunk(b"tRNS", b"\0"))
