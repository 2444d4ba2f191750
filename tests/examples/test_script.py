"""The plain script, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from api_contracts import GenerationClient, TaskStatus
from tests.examples.conftest import ANSWER_S, EXAMPLES, PNG, PROMPT, run
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service

SCRIPT = str(EXAMPLES / "script" / "pictures.py")


def test_each_prompt_is_a_picture(standard: Service, tmp_path: Path) -> None:
    """It tells what happens, saves a PNG for each task, and ends well."""
    environment = {**os.environ, "SAG_BROKER_URL": standard.broker_url}
    done = run(SCRIPT, PROMPT, "a green ring on a black background", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    ids = [line[0] for line in lines if line[1] == "submitted:"]
    assert len(ids) == 2
    for task_id in ids:
        told = [" ".join(line[1:]) for line in lines if line[0] == task_id]
        assert {"queued", "progress 5 of 25", "succeeded"} < set(told)
        assert told[-1] == f"saved: pictures/{task_id}.png"
    saved = {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    assert set(saved) == {f"{task_id}.png" for task_id in ids}
    assert all(data.startswith(PNG) for data in saved.values())


def test_one_that_fails_costs_the_others_nothing(
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
            unlucky, lucky = (process.stdout.readline().split()[0] for _ in range(2))
            with GenerationClient(url, "late") as client:
                assert client.handle(unlucky).cancel() is TaskStatus.QUEUED
            with start_service(url, namespace="late"):
                said, _ = process.communicate(timeout=ANSWER_S)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 1
    assert f"{unlucky} GenerationCancelled" in said
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == [f"{lucky}.png"]


def test_what_can_not_be_submitted_is_said(tmp_path: Path) -> None:
    """A refused prompt is named by its number and field; without Redis it says so."""
    environment = {**os.environ, "SAG_BROKER_URL": f"redis://127.0.0.1:{embedded.free_port()}/0"}
    for prompts, said in (([PROMPT, "x" * 2001], "[1].prompt"), ([PROMPT], "Redis")):
        done = run(SCRIPT, *prompts, cwd=tmp_path, env=environment)
        assert (done.returncode, done.stderr) == (1, "")
        assert said in done.stdout
    assert not list(tmp_path.iterdir())
