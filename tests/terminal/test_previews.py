"""Previews beneath the bars of a terminal."""

from __future__ import annotations

import base64
import re

import pytest

from tests.terminal.images import BLUE, NO_PALETTE, RED, claimed, flat, printed, terminal
from worker.cli.progress import Gallery

pytestmark = pytest.mark.usefixtures("reset_warnings")


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
