"""The commands of a caller against a running worker."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from api_contracts.events import EVENT
from tests.service.conftest import END_S, ENDLESS, SHORT, sag_worker, wait_for, wait_until
from worker import embedded
from worker.cli import health
from worker.cli.main import app
from worker.config.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Service

STEPS = ("--steps", "2")


def pixels(path: str) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_prompts_from_a_pipe_give_json_lines(service: Service) -> None:
    """With `--json` each line is one object: the ids, then every event of every task."""
    prompts = "a large red circle on a white background\na green ring on a black background\n"
    done = sag_worker(
        service, "submit", "--prompts", "-", *STEPS, "--wait", "--json", given=prompts
    )
    assert done.returncode == 0, done.stderr
    first, second, *lines = map(json.loads, done.stdout.splitlines())
    events = [EVENT.validate_python(line) for line in lines]
    for each in (first, second):
        own = [event for event in events if event.task_id == each["task_id"]]
        assert [event.seq for event in own] == list(range(1, len(own) + 1))
        assert own[-1].type == "succeeded"
    assert len({event.task_id for event in events}) == 2


def test_a_picture_is_made_again_from_its_file(service: Service, tmp_path: Path) -> None:
    """`--from-image` gives the same pixels, also for the second of two pictures."""
    out = ("--out", str(tmp_path))
    done = sag_worker(
        service, "submit", "a large red star on a blue background", *STEPS, "--images", "2",
        "--set", "eta=0.5", "--scheduler", "ddim", "--set", 'metadata={"customer": "18"}', *out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    second = done.stdout.splitlines()[-1]
    assert second.endswith("1.png")
    again = sag_worker(service, "submit", "--from-image", second, *out)
    assert again.returncode == 0, again.stderr
    difference = pixels(second).astype(int) - pixels(again.stdout.splitlines()[-1]).astype(int)
    assert np.abs(difference).max() <= 1


Run = Callable[..., tuple[int, str]]


@pytest.fixture(params=["in this process", pytest.param("as a command", marks=pytest.mark.slow)])
def run(service: Service, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command that waits 5 s for answers; in this process the wait is shortened."""

    def as_command(*arguments: str) -> tuple[int, str]:
        done = sag_worker(service, *arguments)
        return done.returncode, done.stdout

    def here(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, arguments, env=service.environment)
        return result.exit_code, result.stdout

    monkeypatch.setattr(health, "ANSWER_TIMEOUT_S", 0.5)
    return here if request.param == "in this process" else as_command


def answered(run: Run, command: str, holds: Callable[[str], bool]) -> tuple[int, str]:
    """Status and output of a command, repeated: a busy worker may answer later than it waits."""
    found = run(*command.split())
    deadline_s = time.monotonic() + END_S
    while not holds(found[1]):
        assert time.monotonic() < deadline_s, found
        found = run(*command.split())
    return found


def test_queue_lists_workers_and_their_tasks(service: Service, run: Run) -> None:
    """`queue` prints a line for each model and worker, and the same as JSON with `--json`."""
    long = service.client.submit(ENDLESS)
    wait_for(long, "progress")
    for _ in range(3):
        service.client.submit(SHORT | {"priority": 9})
    status, shown = answered(run, "queue", lambda text: long.task_id in text)
    assert status == 0
    assert any(long.task_id in line for line in shown.splitlines()[1:])
    assert "\x1b" not in shown
    _, text = answered(run, "queue --json", lambda text: json.loads(text)["workers"] != {})
    state = json.loads(text)
    (worker,) = state["workers"].values()
    assert (worker["device"], worker["refusal"]) == ("cpu", None)
    assert "default" in state["queues"]
    long.cancel()
    wait_until(lambda: long.status().is_terminal)


def test_health_is_0_with_a_worker(run: Run) -> None:
    """`health` asks through the broker, and ends with 0 where a worker answers."""
    assert run("health")[0] == 0


def test_only_workers_of_the_host_are_asked(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe asks only its own host's workers, so that n probes do not cause n x n answers."""
    monkeypatch.setattr(health, "ANSWER_TIMEOUT_S", 0.5)
    settings, host = Settings(broker_url=service.broker_url), socket.gethostname()
    wait_until(lambda: health.all_workers(settings, host) != {})
    for other in (host[:-1], f"{host}x", f"x{host}"):
        assert health.all_workers(settings, other) == {}


def test_health_is_1_without_a_worker(
    service: Service, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`health` ends with 1 where no worker answers."""
    with embedded.redis_server(tmp_path) as url:
        monkeypatch.setitem(service.environment, "SAG_BROKER_URL", url)
        assert run("health")[0] == 1


def test_more_than_one_source_of_requests_is_refused(service: Service) -> None:
    """`submit` takes exactly one of prompt, `--prompts`, `--request`; otherwise nothing is sent."""
    for arguments in ([], ["x", "--prompts", "-"], ["x", "--request", "-"]):
        done = sag_worker(service, "submit", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "--from-image" in done.stderr


def test_a_fault_is_named_with_its_request(service: Service) -> None:
    """An error in one of several requests names the request's index and the field."""
    lines = '{"prompt": "x"}\n{"prompt": "x", "nope": 1}\n'
    done = sag_worker(service, "submit", "--request", "-", given=lines)
    assert (done.returncode, done.stdout) == (2, "")
    assert "[1].nope" in done.stderr
