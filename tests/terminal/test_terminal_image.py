"""Images in a terminal, and what is not drawn at all."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import struct
import sys
import warnings
import zlib
from typing import TYPE_CHECKING, Literal

import pytest
from PIL import Image
from rich.console import Console

from api_contracts import GenerationError, ImageResult
from worker import embedded
from worker.cli import download, output, terminal_image
from worker.cli.progress import Gallery
from worker.cli.terminal_image import Preview, can_draw

if TYPE_CHECKING:
    from pathlib import Path

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 254, 1), (1, 2, 253), (9, 9, 9)
TRUE = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}


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


@pytest.fixture(autouse=True)
def _reset_warnings() -> None:
    """Pytest restores the warning filters after each test."""
    terminal_image._silence_pillow.cache_clear()


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


def url(data: bytes, kind: str = "jpeg") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    "given",
    ["", "nonsense", "data:image/jpeg;base64,???", "data:image/jpeg;base64,YQ", url(b"x", "png"),
     "https://example.org/x.jpg", url(flat((8, 8), kind="JPEG") + bytes(2**18)),
     url(b"no picture"), url(claimed(5000)), url(NO_PALETTE), url(flat((1025, 1024), kind="JPEG"))],
)  # fmt: skip
def test_an_invalid_preview_is_ignored(given: str) -> None:
    """An invalid preview is ignored, and the last one stays."""
    gallery, console = Gallery(terminal(), ["a"]), terminal()
    gallery.put(0, given)
    console.print(gallery)
    assert printed(console) == ""
    gallery.put(0, url(flat((128, 128), kind="JPEG")))
    gallery.put(0, given)
    console.print(gallery)
    assert printed(console).count("▀") == 32 * 16


@pytest.mark.parametrize(
    ("labels", "width", "height", "shown"),
    [(["a"], 80, 24, 1), (["a", "b", "c", "d"], 80, 24, 3), (["a", "b", "c"], 120, 40, 3),
     (["a", "b"], 80, 9, 2), (["a"], 80, 6, 0), (["a"] * 30, 80, 24, 0), (["a", "b"], 8, 40, 0)],
)  # fmt: skip
def test_previews_fit_beneath_the_bars(
    labels: list[str], width: int, height: int, shown: int
) -> None:
    """As many previews are shown as fit side by side, and none where there are too few rows."""
    console = terminal(width=width, height=height)
    gallery = Gallery(console, labels)
    for number in range(len(labels)):
        gallery.put(number, url(flat((128, 128), kind="JPEG")))
    console.print(gallery)
    lines = re.sub(r"\x1b\[[\d;]*m", "", printed(console)).splitlines()
    assert len(lines) + len(labels) < height or not shown
    assert all(len(line) <= width for line in lines)
    assert len(lines[0].split() if lines else []) == shown
    if shown and len(labels) > 1:
        assert lines[-1].split() == labels[:shown]


def test_a_preview_is_removed_with_its_task() -> None:
    """A preview is removed with its task, and makes room for the next."""
    console = terminal(width=22)
    gallery = Gallery(console, ["a", "b"])
    for number, colour in enumerate((RED, BLUE)):
        gallery.put(number, url(flat((128, 128), colour, "JPEG")))
    gallery.remove(0)
    gallery.remove(0)
    console.print(gallery)
    assert "b" in printed(console)
    assert "38;2;254;0;0" not in printed(console)


@pytest.mark.parametrize(
    ("environment", "wanted", "drawn"),
    [
        (TRUE, "auto", True),
        (TRUE, "blocks", True),
        (TRUE, "none", False),
        ({"TERM": "xterm-kitty"}, "auto", True),
        (TRUE | {"TERM_PROGRAM": "Apple_Terminal", "TMUX": "/tmp/x"}, "auto", True),
        ({"TERM": "dumb"}, "blocks", False),
        ({"TERM": ""}, "blocks", False),
        ({"COLORTERM": "truecolor"}, "blocks", False),
    ],
)
def test_a_terminal_is_recognised_by_its_variables(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], wanted: str, drawn: bool
) -> None:
    """Any terminal but a dumb one is drawn on unless the option says `none`."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert can_draw(Preview(wanted), terminal(), environment) is drawn


@pytest.mark.parametrize("wanted", list(Preview))
@pytest.mark.parametrize("piped", ["stdout", "stderr"])
def test_a_pipe_gets_no_image(monkeypatch: pytest.MonkeyPatch, wanted: Preview, piped: str) -> None:
    """Where one output is no terminal nothing is drawn on the other, whatever the option says."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda name=name: name != piped)
    assert not can_draw(wanted, terminal(), TRUE | {"FORCE_COLOR": "1"})


@pytest.mark.parametrize("console", [terminal(no_color=True), terminal("standard"), terminal(None)])
@pytest.mark.parametrize("wanted", [Preview.AUTO, Preview.BLOCKS])
def test_without_colours_nothing_is_drawn(
    monkeypatch: pytest.MonkeyPatch, console: Console, wanted: Preview
) -> None:
    """Without colours, or with 16, nothing is drawn: half blocks would be one patch."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert not can_draw(wanted, console, TRUE)


def test_without_pillow_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller without the worker extra can decode no image."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert not can_draw(Preview.BLOCKS, terminal(), TRUE)


def result(url: str | None, data: bytes) -> ImageResult:
    return ImageResult(
        key="outputs/a/0.png", url=url, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data),
        width=8, height=8, seed=1, nsfw_content_detected=None,
    )  # fmt: skip


def test_an_image_that_cannot_be_fetched_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """Without an answer, or without a URL, the command goes on."""
    nowhere = f"http://{embedded.LOOPBACK}:{embedded.free_port()}/x.png"
    for link, why in ((nowhere, "could not fetch"), (None, "presigns no URLs")):
        output._show(result(link, b""), None)
        heard = capsys.readouterr()
        assert heard.out == ""
        assert heard.err.startswith(f"not shown: {'' if link else 'the worker '}{why}")


def test_a_file_url_is_refused(tmp_path: Path) -> None:
    """Only http and https are fetched, whatever a record says."""
    file = tmp_path / "x.png"
    file.write_bytes(flat((8, 8)))
    with pytest.raises(GenerationError, match="neither http nor https"):
        download.fetch(result(file.as_uri(), file.read_bytes()))
