"""`sag-worker demo`: pictures from nothing, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

END_S = 170


def demo(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    """A demo whose servers keep their files below `tmp_path`."""
    return subprocess.Popen(
        [sys.executable, "-m", "worker", "demo", "--out", str(tmp_path / "out"), *options],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_behind(tmp_path: Path) -> list[str]:
    """Processes that were started with a path below `tmp_path`, and folders of servers."""
    listed = subprocess.run(
        ["pgrep", "-af", str(tmp_path)], capture_output=True, text=True, check=False
    )
    return [*listed.stdout.splitlines(), *(path.name for path in tmp_path.glob("sag-worker-*"))]


@pytest.mark.timeout(END_S + 10)
def test_a_demo_ends_with_a_picture_and_leaves_nothing(tmp_path: Path) -> None:
    """One prompt: exit 0, its picture and the contact sheet, whose path is the last line."""
    process = demo(tmp_path, "--prompt", "a large red star on a blue background")
    output, _ = process.communicate(timeout=END_S)
    assert process.returncode == 0
    sheet = output.splitlines()[-1]
    with Image.open(sheet) as picture:
        assert picture.width > 256
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert left_behind(tmp_path) == []


@pytest.mark.timeout(END_S + 10)
def test_an_interrupt_stops_everything(tmp_path: Path) -> None:
    """Ctrl-C in the middle: a status that is not zero, no server and no worker left."""
    process = demo(tmp_path)
    assert process.stderr is not None
    assert "Redis at" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=END_S)
    assert process.returncode != 0
    assert left_behind(tmp_path) == []


@pytest.mark.timeout(END_S + 10)
def test_a_demo_that_fails_says_so(tmp_path: Path) -> None:
    """A request that is refused ends the demo with a status that is not zero."""
    process = demo(tmp_path, "--prompt", "x" * 3000)
    _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 1
    assert "prompt" in errors
    assert left_behind(tmp_path) == []
