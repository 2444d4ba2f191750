"""The plain script, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationClient, TaskStatus
from tests.conftest import FEW_STEPS
from tests.examples.conftest import ANSWER_S, EXAMPLES, PNG, PROMPT, run
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service

SCRIPT = str(EXAMPLES / "script" / "pictures.py")


def test_each_prompt_is_a_picture(standard: Service, tmp_path: Path) -> None:
    """The script prints each task's progress, saves a PNG for each, and ends with 0."""
    environment = {**os.environ, "SAG_BROKER_URL": standard.broker_url}
    done = run(SCRIPT, PROMPT, "a green ring on a black background", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    ids = [line[0] for line in lines if line[1] == "submitted:"]
    assert len(ids) == 2
    for task_id in ids:
        printed = [" ".join(line[1:]) for line in lines if line[0] == task_id]
        assert {"queued", "progress 5 of 5", "succeeded"} < set(printed)
        assert printed[-1] == f"saved: pictures/{task_id}.png"
    saved = {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    assert set(saved) == {f"{task_id}.png" for task_id in ids}
    assert all(data.startswith(PNG) for data in saved.values())


@pytest.mark.slow
def test_one_failure_does_not_stop_the_others(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """Of two tasks that wait one is cancelled: the other's picture is saved, the status is 1."""
    with embedded.redis_server(tmp_path) as url:
        process = subprocess.Popen(
            [sys.executable, SCRIPT, PROMPT, PROMPT],
            stdout=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**os.environ, "SAG_BROKER_URL": url, "SAG_NAMESPACE": "late"},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            cancelled, other = (process.stdout.readline().split()[0] for _ in range(2))
            with GenerationClient(url, "late") as client:
                assert client.handle(cancelled).cancel() is TaskStatus.QUEUED
            with start_service(url, namespace="late", models=FEW_STEPS):
                output, _ = process.communicate(timeout=ANSWER_S)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 1
    assert f"{cancelled} GenerationCancelled" in output
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == [f"{other}.png"]


def test_a_failed_submission_is_reported(tmp_path: Path) -> None:
    """A refused prompt is named by its index and field; without Redis the script names Redis."""
    environment = {**os.environ, "SAG_BROKER_URL": f"redis://127.0.0.1:{embedded.free_port()}/0"}
    for prompts, message in (([PROMPT, "x" * 2001], "[1].prompt"), ([PROMPT], "Redis")):
        done = run(SCRIPT, *prompts, cwd=tmp_path, env=environment)
        assert (done.returncode, done.stderr) == (1, "")
        assert message in done.stdout
    assert not list(tmp_path.iterdir())
