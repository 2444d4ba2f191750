"""`sag-worker demo`: pictures from nothing, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.service.conftest import wait_until

END_S = 170


#: In `sitecustomize`: a worker whose bundled model is not there.
NO_MODEL = """
from pathlib import Path
from worker.config import models
models.SHIPPED_MODEL = Path("/nowhere")
"""


def demo(tmp_path: Path, *options: str, **variables: str) -> subprocess.Popen[str]:
    """A demo whose servers keep their files below `tmp_path`."""
    return subprocess.Popen(
        [sys.executable, "-m", "worker", "demo", "--out", str(tmp_path / "out"), *options],
        # What somebody has set for a service of their own must mean nothing here.
        env={
            **os.environ,
            "TMPDIR": str(tmp_path),
            "SAG_NAMESPACE": "other",
            "SAG_SLOTS": "x",
            "AWS_ACCESS_KEY_ID": "mine",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "eu-central-1",
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_behind(tmp_path: Path) -> list[str]:
    """Processes whose environment or command names `tmp_path`, and folders of servers."""
    found = [path.name for path in tmp_path.glob("sag-worker-*")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:  # it has ended, or is another user's
            continue
        if str(tmp_path).encode() in told:
            found.append(process.name)
    return found


def children(process: int) -> list[int]:
    """The ids of the processes that a process has started."""
    listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in listed.split()]


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
    """Ctrl-C in the middle: status 130, no server and no worker left."""
    process = demo(tmp_path)
    assert process.stderr is not None
    wait_until(lambda: len(children(process.pid)) == 4)  # Redis, S3, the worker and their guard
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert left_behind(tmp_path) == []


@pytest.mark.timeout(END_S + 10)
def test_a_demo_that_fails_says_so(tmp_path: Path) -> None:
    """A request that is refused ends the demo with a status that is not zero."""
    process = demo(tmp_path, "--prompt", "x" * 3000)
    _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 1
    assert "prompt" in errors
    assert left_behind(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(END_S + 10)
def test_a_demo_without_a_model_fails(tmp_path: Path) -> None:
    """When every task fails the demo prints why and exits with 1, without waiting for more."""
    (tmp_path / "sitecustomize.py").write_text(NO_MODEL)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = demo(tmp_path, PYTHONPATH=path)
    _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 1
    assert "model_load_failed" in errors
    assert "0 of 6 images" in errors


@pytest.mark.slow
@pytest.mark.timeout(END_S + 10)
def test_a_demo_whose_worker_died_fails(tmp_path: Path) -> None:
    """The demo prints how its worker ended and its log, and exits with 1."""
    process = demo(tmp_path)
    assert process.stderr is not None
    wait_until(lambda: any(tmp_path.glob("sag-worker-*/worker.log")))
    (log,) = tmp_path.glob("sag-worker-*/worker.log")
    wait_until(lambda: "ready." in log.read_text())
    (worker,) = [
        child
        for child in children(process.pid)
        if b"work" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
    ]
    os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 1
    assert "the worker exited (killed by SIGKILL)" in errors
    assert "ready." in errors
    assert left_behind(tmp_path) == []
