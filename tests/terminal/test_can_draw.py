"""Which terminals images are drawn in, and what is said of those that are not drawn."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationError, ImageResult
from tests.terminal.images import flat, terminal
from worker import embedded
from worker.cli import download, output
from worker.cli.terminal_image import Preview, can_draw

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

pytestmark = pytest.mark.usefixtures("reset_warnings")
TRUE = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}


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
