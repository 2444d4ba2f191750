"""Images in a terminal, and what is not drawn at all."""

from __future__ import annotations

import re
import struct
import warnings

import pytest
from PIL import Image

from tests.terminal.images import (
    BLUE,
    GREEN,
    GREY,
    NO_PALETTE,
    RED,
    claimed,
    encoded,
    flat,
    printed,
    terminal,
)
from worker.cli import terminal_image

pytestmark = pytest.mark.usefixtures("reset_warnings")


def test_every_pixel_has_its_colour() -> None:
    """A line has two rows of pixels: the upper in the block's colour, the lower behind it."""
    image = Image.new("RGB", (2, 3))
    image.putdata([RED, GREEN, BLUE, GREY, GREY, RED])
    console, drawn = terminal(), terminal_image.draw(encoded(image), 80, 20)
    assert drawn is not None
    console.print(drawn)
    cells = re.findall(r"\x1b\[38;2;([\d;]+?)(?:;48;2;([\d;]+))?m(▀+)", printed(console))
    wanted = [(RED, BLUE), (GREEN, GREY), (GREY, None), (RED, None)]
    assert [(upper, lower, len(text)) for upper, lower, text in cells] == [
        (";".join(map(str, upper)), ";".join(map(str, lower or ())), 1) for upper, lower in wanted
    ]
    assert printed(console).count("\n") == 2


def test_256_colours_are_enough() -> None:
    """A terminal with 256 colours gets the nearest ones."""
    console, drawn = terminal("256"), terminal_image.draw(flat((2, 2)), 80, 20)
    console.print(drawn)
    assert "38;5;196;48;5;196m" in printed(console)
    assert ";2;" not in printed(console)


@pytest.mark.parametrize(
    ("size", "room", "drawn"),
    [
        ((640, 640), (80, 20), (40, 20)), ((640, 320), (80, 20), (80, 20)),
        ((640, 160), (80, 20), (80, 10)), ((10, 5), (80, 20), (10, 3)),
        ((640, 640), (8, 20), (8, 4)),
    ],
)  # fmt: skip
def test_an_image_fits(
    size: tuple[int, int], room: tuple[int, int], drawn: tuple[int, int]
) -> None:
    """An image is fitted into columns and rows, in its proportions, and never enlarged."""
    lines = str(terminal_image.draw(flat(size), *room)).split("\n")
    assert (len(lines[0]), len(lines)) == drawn


@pytest.mark.parametrize(
    "data",
    [b"", b"nonsense", b"\x93NUMPY\x01\x00", b"RIFFxxxx", flat((8, 8), kind="GIF"),
     b"\x1b]0;title\x07", NO_PALETTE, claimed(5000), flat((8, 8))[:45], flat((4097, 4096)),
     flat((4097, 4096), kind="JPEG")],
)  # fmt: skip
def test_a_broken_or_huge_image_is_not_drawn(data: bytes) -> None:
    """Nothing is printed for what cannot be decoded, is no image or is too large."""
    console = terminal()
    terminal_image.show(data, console)
    assert printed(console) == ""


@pytest.mark.parametrize("side_px", [5_000, 11_000, 60_000, 2**31 - 1])
def test_a_small_file_that_claims_to_be_huge_costs_nothing(side_px: int) -> None:
    """A small file that claims to be huge is not drawn, and Pillow prints no warning."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert terminal_image.draw(claimed(side_px), 80, 20) is None
    assert heard == []


def test_the_largest_image_is_drawn() -> None:
    """4096 pixels square is the limit; a larger image is not decoded."""
    assert terminal_image.draw(flat((4097, 4096)), 80, 20) is None
    assert terminal_image.draw(flat((4096, 4096)), 80, 20) is not None


def test_a_damaged_image_raises_nothing() -> None:
    """Cut at any byte, or with any byte changed, an image is drawn or left out."""
    data = flat((16, 16), kind="JPEG")
    for number in range(len(data)):
        terminal_image.draw(data[:number], 80, 20)
        terminal_image.draw(
            data[:number] + bytes([data[number] ^ 0xFF]) + data[number + 1 :], 80, 20
        )
    assert terminal_image.draw(data[:100], 80, 20) is None


@pytest.mark.parametrize("bomb", [False, True])
def test_pillow_prints_no_warnings(bomb: bool) -> None:
    """Pillow's warnings about broken EXIF and huge images are ignored, each time.

    The filter is set once, so that later filters of others come first.
    """
    plain = flat((16, 16), kind="JPEG")
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    broken = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(2):
            drawn = terminal_image.draw(claimed(11_000) if bomb else broken, 80, 20)
            assert (drawn is None) is bomb
        warnings.filterwarnings("error", module="other")
        filters = [*warnings.filters]
        terminal_image.draw(broken, 80, 20)
        assert [*warnings.filters] == filters
    assert heard == []
