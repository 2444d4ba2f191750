"""`sag-worker demo` makes pictures, and leaves no process and no file."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from rich.console import Console

from api_contracts import GenerationError
from tests import fork_server
from tests.conftest import BUCKET, FEW_STEPS
from tests.service.conftest import wait_until
from training.pixels import classes
from worker import embedded
from worker.cli import demo as demo_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.embedded import S3Server

END_S = 170
PROMPT = "a large red star on a blue background"
#: In `sitecustomize`: a worker whose bundled model is not there.
NO_MODEL = """
from pathlib import Path
from worker.config import models
models.SHIPPED_MODEL = models.SHIPPED_PIXEL_MODEL = Path("/nowhere")
"""


def demo(tmp_path: Path, *options: str, **variables: str) -> subprocess.Popen[str]:
    """Start a demo whose servers have their files below `tmp_path`."""
    return subprocess.Popen(
        [sys.executable, "-m", "worker", "demo", "--out", str(tmp_path / "out"), *options],
        # Settings for another service must have no effect here.
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


@pytest.fixture
def restored_signals() -> Iterator[None]:
    """Restore the handlers that `run_demo` replaces."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.usefixtures("restored_signals")
@pytest.mark.parametrize(("prompt", "status"), [(PROMPT, 0), ("x" * 3000, 1)])
def test_a_demo_in_this_process(
    tmp_path: Path,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prompt: str,
    status: int,
) -> None:
    """A demo with the suite's S3 and a forked worker makes its files, or names a bad prompt."""

    def running(command: list[str], log: Path, ready: Any, environment: dict[str, str]) -> Any:
        few = {"SAG_MODELS": FEW_STEPS, "SAG_S3_PREFIX": "demo", "SAG_MAX_BATCH_ROWS": "16"}
        return fork_server.running(command, log, ready, environment | few)

    servers = {each: getattr(embedded, each) for each in ("scratch", "redis_server")}
    servers |= {"s3_server": lambda *_: nullcontext(s3), "running": running}
    monkeypatch.setattr(demo_command, "embedded", SimpleNamespace(**servers))
    monkeypatch.setattr(demo_command, "BUCKET", BUCKET)
    errors = io.StringIO()
    assert demo_command.run_demo(prompt, tmp_path, Console(file=errors)) == status
    if status:
        assert "prompt" in errors.getvalue()
    else:
        with Image.open(capsys.readouterr().out.splitlines()[-1]) as sheet:
            assert sheet.width > 256
    assert len(list(tmp_path.iterdir())) == (0 if status else 2)


@pytest.mark.usefixtures("restored_signals")
@pytest.mark.parametrize(
    ("prompt", "made"), [(None, (*demo_command.PROMPTS, *6 * [None])), ("", ("",))]
)
def test_an_empty_prompt_is_a_prompt(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompt: str | None,
    made: tuple[str | None, ...],
) -> None:
    """An empty prompt makes one picture of it; without one prompts and classes are made."""
    asked: list[tuple[str | None, ...]] = []

    def make(_stack: Any, requests: dict[str, dict[str, Any]], _console: Any) -> list[Any]:
        asked.append(tuple(each.get("prompt") for each in requests.values()))
        raise GenerationError

    monkeypatch.setattr(demo_command, "_make_images", make)
    demo_command.run_demo(prompt, tmp_path, Console(file=io.StringIO()))
    assert asked == [made]
    Image.new("RGB", (8, 8)).save(image := tmp_path / "image.png")
    assert demo_command._contact_sheet([("", image)], tmp_path).exists()


def test_each_class_is_drawn_without_sag_and_with_it() -> None:
    """The names are those of the labels; a class has SAG below its picture without it."""
    asked = [each for each in demo_command._asked(None).values() if "class_labels" in each]
    columns = demo_command.COLUMNS
    assert len(asked) == 2 * columns
    for above, below in zip(asked[:columns], asked[columns:], strict=True):
        assert (above["sag_scale"], below["sag_scale"]) == (0.0, 1.0)
        assert above | {"sag_scale": 1.0} == below
    assert all(classes.name_of(label) == name for label, name in demo_command.CLASSES.items())


def left_behind(tmp_path: Path) -> list[str]:
    """Processes whose environment or command names `tmp_path`, and folders of servers."""
    found = [path.name for path in tmp_path.glob("sag-worker-*")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:  # it has ended, or belongs to another user
            continue
        if str(tmp_path).encode() in text:
            found.append(process.name)
    return found


def children(process: int) -> list[int]:
    """The ids of the processes that a process has started."""
    listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in listed.split()]


@pytest.mark.slow
@pytest.mark.timeout(END_S + 10)
def test_a_demo_makes_a_picture_and_leaves_nothing(tmp_path: Path) -> None:
    """A demo ends with 0 and two files, prints the contact sheet's path, and leaves nothing."""
    process = demo(tmp_path, "--prompt", PROMPT)
    output, _ = process.communicate(timeout=END_S)
    assert process.returncode == 0
    sheet = output.splitlines()[-1]
    with Image.open(sheet) as picture:
        assert picture.width > 256
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert left_behind(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(END_S + 10)
def test_an_interrupt_stops_everything(tmp_path: Path) -> None:
    """Ctrl-C while the worker starts: status 130, and no server and no worker is left."""
    process = demo(tmp_path)
    assert process.stderr is not None
    wait_until(lambda: len(children(process.pid)) == 4)  # Redis, S3, the worker and their guard
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert left_behind(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(END_S + 10)
def test_a_refused_request_ends_the_demo_with_1(tmp_path: Path) -> None:
    """The demo prints the fault, and ends all servers."""
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
    assert "0 of 12 images" in errors


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
