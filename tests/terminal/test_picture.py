"""Pictures as a terminal is told them, and what is not shown at all."""

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
from worker.cli.gallery import Gallery
from worker.cli.terminal_image import Preview, choose

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


def told(console: Console) -> str:
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
    """A PNG of a few bytes that says it is square and so wide."""
    header = struct.pack(">IIBBBBB", side_px, side_px, bits, kind, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette
    return start + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


#: For one see-through colour of none at all Pillow raises AssertionError.
NO_PALETTE = claimed(4, bits=1, kind=3, palette=chunk(b"tRNS", b"\0"))


@pytest.fixture(autouse=True)
def _warnings_as_at_the_start() -> None:
    """Pytest puts the filters of warnings back after each test."""
    terminal_image._hush.cache_clear()


def test_every_pixel_has_its_colour() -> None:
    """Two rows to a line: the upper one is the block's colour, the lower one what is behind it."""
    image = Image.new("RGB", (2, 3))
    image.putdata([RED, GREEN, BLUE, GREY, GREY, RED])
    console, drawn = terminal(), terminal_image.blocks(encoded(image), 80, 20)
    assert drawn is not None
    console.print(drawn)
    cells = re.findall(r"\x1b\[38;2;([\d;]+?)(?:;48;2;([\d;]+))?m(▀+)", told(console))
    wanted = [(RED, BLUE), (GREEN, GREY), (GREY, None), (RED, None)]
    assert [(upper, lower, len(text)) for upper, lower, text in cells] == [
        (";".join(map(str, upper)), ";".join(map(str, lower or ())), 1) for upper, lower in wanted
    ]
    assert told(console).count("\n") == 2


def test_256_colours_are_near() -> None:
    """Where a terminal has no more, the nearest of them are sent, and no others."""
    console, drawn = terminal("256"), terminal_image.blocks(flat((2, 2)), 80, 20)
    console.print(drawn)
    assert "38;5;196;48;5;196m" in told(console)
    assert ";2;" not in told(console)


@pytest.mark.parametrize(
    ("size", "room", "drawn"),
    [
        ((640, 640), (80, 20), (40, 20)), ((640, 320), (80, 20), (80, 20)),
        ((640, 160), (80, 20), (80, 10)), ((10, 5), (80, 20), (10, 3)),
        ((640, 640), (8, 20), (8, 4)),
    ],
)  # fmt: skip
def test_a_picture_fits(
    size: tuple[int, int], room: tuple[int, int], drawn: tuple[int, int]
) -> None:
    """Into columns and rows, in its own proportions, and not larger than it is."""
    lines = str(terminal_image.blocks(flat(size), *room)).split("\n")
    assert (len(lines[0]), len(lines)) == drawn


@pytest.mark.parametrize("size", [1, 3071, 3072, 3073, 6144, 20_000])
def test_kitty_gets_its_chunks(size: int) -> None:
    """At most 4,096 characters each, all but the last a multiple of 4; only the last says so."""
    data = bytes(number % 251 for number in range(size))
    whole = terminal_image.kitty(data, 20)
    messages = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", whole)
    assert "".join(f"\x1b_G{keys};{text}\x1b\\" for keys, text in messages) == whole
    assert base64.b64decode("".join(text for _, text in messages), validate=True) == data
    assert all(len(text) <= 4096 for _, text in messages)
    assert all(len(text) == 4096 for _, text in messages[:-1])
    first, *others = [set(keys.split(",")) for keys, _ in messages]
    assert first >= {"a=T", "f=100", "q=2", "r=20"}
    assert [keys - first for keys in others[:-1]] == [set() for _ in others[:-1]]
    assert ["m=1" in keys for keys, _ in messages] == [True] * len(others) + [False]
    assert all(keys in ("m=0", "m=1") for keys, _ in messages[1:])


def test_iterm2_gets_the_file_itself() -> None:
    """In one message with its size, ended by BEL."""
    data = bytes(range(256)) * 30
    found = re.fullmatch(
        r"\x1b\]1337;File=inline=1;size=7680;height=7;preserveAspectRatio=1:(.*)\x07",
        terminal_image.iterm2(data, 7),
    )
    assert found
    assert base64.b64decode(found[1], validate=True) == data


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_kitty_gets_png_alone(kind: str) -> None:
    """Its protocol knows no other files; iTerm2 takes them as they are."""
    console, data = terminal(), flat((64, 64), kind=kind)
    terminal_image.show(data, (64, 64), Preview.KITTY, console)
    sent = base64.b64decode("".join(re.findall(r";([^;\x1b]*)\x1b\\", told(console))))
    assert Image.open(io.BytesIO(sent)).format == "PNG"
    other = terminal()
    terminal_image.show(data, (64, 64), Preview.ITERM2, other)
    assert base64.b64encode(data).decode() in told(other)


@pytest.mark.parametrize(
    ("size", "room", "rows"),
    [((64, 64), (80, 24), 20), ((64, 64), (80, 12), 8), ((1024, 256), (80, 24), 10),
     ((64, 64), (80, 3), 1), ((0, 0), (80, 24), 1)],
)  # fmt: skip
def test_a_terminals_own_pictures_fit(
    size: tuple[int, int], room: tuple[int, int], rows: int
) -> None:
    """As high as there is room for, lower where they would be too wide."""
    console = terminal(width=room[0], height=room[1])
    terminal_image.show(flat((8, 8)), size, Preview.KITTY, console)
    assert f",r={rows}," in told(console)


@pytest.mark.parametrize("way", [Preview.KITTY, Preview.ITERM2, Preview.BLOCKS])
@pytest.mark.parametrize(
    "data",
    [b"", b"nonsense", b"\x93NUMPY\x01\x00", b"RIFFxxxx", flat((8, 8), kind="GIF"),
     b"\x1b]0;title\x07", NO_PALETTE, claimed(5000), flat((8, 8))[:45], flat((4097, 4096)),
     flat((4097, 4096), kind="JPEG")],
)  # fmt: skip
def test_what_is_no_picture_is_not_sent(way: Preview, data: bytes) -> None:
    """No terminal is told of what can't be shown or is huge, nor is anything drawn of it."""
    console = terminal()
    terminal_image.show(data, (8, 8), way, console)
    assert told(console) == ""


@pytest.mark.parametrize("side_px", [5_000, 11_000, 60_000, 2**31 - 1])
def test_a_few_bytes_that_claim_to_be_huge_cost_nothing(side_px: int) -> None:
    """No memory for their pixels, no warning of Pillow's into the middle of the bars."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert terminal_image.blocks(claimed(side_px), 80, 20) is None
    assert heard == []


def test_a_picture_that_is_huge_is_not_drawn() -> None:
    """Four thousand pixels square is the most; beyond, it is not even unpacked."""
    assert terminal_image.blocks(flat((4097, 4096)), 80, 20) is None
    assert terminal_image.blocks(flat((4096, 4096)), 80, 20) is not None


def test_what_is_cut_or_scribbled_on_is_not_drawn() -> None:
    """Any beginning of a picture, and one with any byte changed, is drawn or left out."""
    data = flat((16, 16), kind="JPEG")
    for number in range(len(data)):
        terminal_image.blocks(data[:number], 80, 20)
        terminal_image.blocks(
            data[:number] + bytes([data[number] ^ 0xFF]) + data[number + 1 :], 80, 20
        )
    assert terminal_image.blocks(data[:100], 80, 20) is None


@pytest.mark.parametrize("bomb", [False, True])
def test_pillow_says_nothing_into_the_bars(bomb: bool) -> None:
    """Of spoilt EXIF as of a huge picture it warns each time; nobody hears it, any time.

    The filters are set once: those that somebody sets later stand before them.
    """
    plain = flat((16, 16), kind="JPEG")
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    spoilt = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(2):
            drawn = terminal_image.blocks(claimed(11_000) if bomb else spoilt, 80, 20)
            assert (drawn is None) is bomb
        warnings.filterwarnings("error", module="somebody")
        filters = [*warnings.filters]
        terminal_image.blocks(spoilt, 80, 20)
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
def test_a_preview_that_is_none_is_left_out(given: str) -> None:
    """The bars go on with the preview that was there before."""
    gallery, console = Gallery(terminal(), ["a"]), terminal()
    gallery.put(0, given)
    console.print(gallery)
    assert told(console) == ""
    gallery.put(0, url(flat((128, 128), kind="JPEG")))
    gallery.put(0, given)
    console.print(gallery)
    assert told(console).count("▀") == 32 * 16


@pytest.mark.parametrize(
    ("labels", "width", "height", "shown"),
    [(["a"], 80, 24, 1), (["a", "b", "c", "d"], 80, 24, 3), (["a", "b", "c"], 120, 40, 3),
     (["a", "b"], 80, 9, 2), (["a"], 80, 6, 0), (["a"] * 30, 80, 24, 0), (["a", "b"], 8, 40, 0)],
)  # fmt: skip
def test_previews_fit_beneath_the_bars(
    labels: list[str], width: int, height: int, shown: int
) -> None:
    """As many as fit side by side, their labels beneath; none where nobody would see anything."""
    console = terminal(width=width, height=height)
    gallery = Gallery(console, labels)
    for number in range(len(labels)):
        gallery.put(number, url(flat((128, 128), kind="JPEG")))
    console.print(gallery)
    lines = re.sub(r"\x1b\[[\d;]*m", "", told(console)).splitlines()
    assert len(lines) + len(labels) < height or not shown
    assert all(len(line) <= width for line in lines)
    assert len(lines[0].split() if lines else []) == shown
    if shown and len(labels) > 1:
        assert lines[-1].split() == labels[:shown]


def test_a_preview_goes_with_its_task() -> None:
    """What has ended makes room for the next."""
    console = terminal(width=22)
    gallery = Gallery(console, ["a", "b"])
    for number, colour in enumerate((RED, BLUE)):
        gallery.put(number, url(flat((128, 128), colour, "JPEG")))
    gallery.drop(0)
    gallery.drop(0)
    console.print(gallery)
    assert "b" in told(console)
    assert "38;2;254;0;0" not in told(console)


@pytest.mark.parametrize(
    ("environment", "wanted", "way"),
    [
        (TRUE, "auto", "blocks"),
        (TRUE, "none", "none"),
        (TRUE, "kitty", "kitty"),
        (TRUE, "iterm2", "iterm2"),
        ({"TERM": "xterm-kitty"}, "auto", "kitty"),
        ({"TERM": "xterm-kitty"}, "blocks", "blocks"),
        (TRUE | {"KITTY_WINDOW_ID": "1"}, "auto", "kitty"),
        (TRUE | {"TERM_PROGRAM": "ghostty"}, "auto", "kitty"),
        ({"TERM": "xterm-ghostty"}, "auto", "kitty"),
        (TRUE | {"TERM_PROGRAM": "WezTerm"}, "auto", "iterm2"),
        (TRUE | {"TERM_PROGRAM": "iTerm.app"}, "auto", "iterm2"),
        (TRUE | {"LC_TERMINAL": "iTerm2"}, "auto", "iterm2"),
        (TRUE | {"TERM_PROGRAM": "Apple_Terminal"}, "auto", "blocks"),
        (TRUE | {"LC_TERMINAL": "iTerm2", "TMUX": "/tmp/x"}, "auto", "blocks"),
        (TRUE | {"KITTY_WINDOW_ID": "1", "TERM": "screen-256color"}, "kitty", "blocks"),
        (TRUE | {"KITTY_WINDOW_ID": "1", "TERM": "tmux-256color"}, "auto", "blocks"),
        ({"TERM": "dumb", "KITTY_WINDOW_ID": "1"}, "kitty", "none"),
        ({"KITTY_WINDOW_ID": "1"}, "kitty", "none"),
    ],
)
def test_the_way_is_what_the_terminal_understands(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], wanted: str, way: str
) -> None:
    """As its variables say; what was named is taken, but where it can't get through."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert choose(Preview(wanted), terminal(), environment) == way


@pytest.mark.parametrize("wanted", list(Preview))
@pytest.mark.parametrize("piped", ["stdout", "stderr"])
def test_a_pipe_gets_no_picture(
    monkeypatch: pytest.MonkeyPatch, wanted: Preview, piped: str
) -> None:
    """Where one of the two is none, nothing is shown on the other either, whatever was named."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda name=name: name != piped)
    environment = TRUE | {"KITTY_WINDOW_ID": "1", "FORCE_COLOR": "1"}
    assert choose(wanted, terminal(), environment) is Preview.NONE


@pytest.mark.parametrize("console", [terminal(no_color=True), terminal("standard"), terminal(None)])
def test_without_colours_nothing_is_drawn(
    monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    """`NO_COLOR`, or a terminal with 16: blocks would be one patch. Pictures are not touched."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert choose(Preview.BLOCKS, console, TRUE) is Preview.NONE
    assert choose(Preview.AUTO, console, TRUE) is Preview.NONE
    assert choose(Preview.KITTY, console, TRUE) is Preview.KITTY


def result(url: str | None, data: bytes) -> ImageResult:
    return ImageResult(
        key="outputs/a/0.png", url=url, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data),
        width=8, height=8, seed=1, nsfw_content_detected=None,
    )  # fmt: skip


def test_a_picture_that_cannot_be_had_is_only_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody listens at its URL, or there is none: the command goes on."""
    nowhere = f"http://{embedded.LOOPBACK}:{embedded.free_port()}/x.png"
    for link, why in ((nowhere, "could not fetch"), (None, "presigns nothing")):
        output._show(result(link, b""), None, Preview.BLOCKS)
        heard = capsys.readouterr()
        assert heard.out == ""
        assert heard.err.startswith(f"not shown: {'' if link else 'the worker '}{why}")


def test_a_url_names_no_file_of_this_machine(tmp_path: Path) -> None:
    """A record may say anything; only the web is asked."""
    file = tmp_path / "x.png"
    file.write_bytes(flat((8, 8)))
    with pytest.raises(GenerationError, match="none of http or https"):
        download.fetch(result(file.as_uri(), file.read_bytes()))
