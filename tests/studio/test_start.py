"""`make studio` starts everything with one command, and leaves no process and no file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.service.conftest import wait_until
from tests.service.test_demo import left_behind
from tests.studio.test_endpoints import REQUEST, call, stream
from training.pixels.classes import CLASSES, name_of
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Longest wait for the end of all processes, in seconds.
STOP_S = 60


@contextmanager
def started(tmp_path: Path, port: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A studio whose servers keep their files below `tmp_path`, as does its browser."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o700)
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.studio", "--port", str(port)],
        # Settings for another service must have no effect here.
        env={
            **os.environ,
            "TMPDIR": str(tmp_path),
            "SAG_NAMESPACE": "other",
            "SAG_BROKER_URL": "redis://127.0.0.1:9/0",
            "BROWSER": f"{browser} %s",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        while process.poll() is None:  # after a failure; a second signal makes uvicorn end at once
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_studio_makes_a_picture_and_ends_with_everything(
    tmp_path: Path, number: signal.Signals
) -> None:
    """It opens a browser, has both bundled models draw, and ends with 0 while a page is open."""
    with started(tmp_path) as process:
        url = where(process)
        opened = tmp_path / "opened"
        wait_until(lambda: opened.exists() and opened.read_text() == f"{url}\n")
        _, (prompts, classes) = call("GET", f"{url}models")
        assert prompts == {"name": "default", "classes": None, "adapters": []}
        assert classes["classes"] == [name_of(label) for label in range(len(CLASSES))]
        unserved = REQUEST | {"model": "unserved"}
        star = {"model": classes["name"], "class_labels": classes["classes"].index("green star")}
        short = {"num_inference_steps": 2}
        requests = {"a": REQUEST | short, "b": unserved, "c": star | short}
        assert call("POST", f"{url}tasks", requests)[0] == 202
        for task_id in ("a", "c"):
            assert stream(f"{url}tasks/{task_id}/events")[-1][1]["type"] == "succeeded"
        address = embedded.LOOPBACK, int(url.rstrip("/").rpartition(":")[2])
        with socket.create_connection(address, timeout=STOP_S) as page:
            page.sendall(b"GET /tasks/b/events HTTP/1.1\r\nHost: a\r\n\r\n")
            assert page.recv(100)
            process.send_signal(number)
            _, errors = process.communicate(timeout=STOP_S)
    assert (process.returncode, errors) == (0, "everything is stopped\n")
    assert left_behind(tmp_path) == []


def where(process: subprocess.Popen[str]) -> str:
    """The page's URL, when the studio prints it."""
    assert process.stderr is not None
    for line in process.stderr:
        if "http://" in line:
            return "http://" + line.partition("http://")[2].split()[0]
    raise AssertionError("it ended")


def test_a_port_that_is_in_use_is_reported(tmp_path: Path) -> None:
    """Before any server starts, with the option that helps."""
    with (
        socket.create_server((embedded.LOOPBACK, 0)) as taken,
        started(tmp_path, taken.getsockname()[1]) as process,
    ):
        _, errors = process.communicate(timeout=STOP_S)
    assert process.returncode == 1
    assert errors.startswith("--port ")
    assert "--port 0" in errors
    assert left_behind(tmp_path) == []
