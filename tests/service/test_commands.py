"""The commands against a real worker, as a script would use them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from api_contracts.events import EVENT
from tests.service.conftest import END_S, wait_for, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Service

STEPS = ("--steps", "3")
#: Still running after commands beside it have started.
LONG = {"prompt": "x", "num_inference_steps": 150, "num_images_per_prompt": 4}


def command(
    service: Service, *arguments: str, given: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one as somebody beside the worker."""
    return subprocess.run(
        [sys.executable, "-m", "worker", *arguments], input=given,
        env={**os.environ, **service.environment},
        capture_output=True, text=True, check=False, timeout=END_S,
    )  # fmt: skip


def pixels(path: str) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_many_prompts_from_a_pipe_are_told_to_a_machine(service: Service) -> None:
    """Each line of the output is one JSON object: the ids, then every event of every task."""
    prompts = "a large red circle on a white background\na green ring on a black background\n"
    done = command(service, "submit", "--prompts", "-", *STEPS, "--wait", "--json", given=prompts)
    assert done.returncode == 0, done.stderr
    first, second, *lines = map(json.loads, done.stdout.splitlines())
    events = [EVENT.validate_python(line) for line in lines]
    for each in (first, second):
        own = [event for event in events if event.task_id == each["task_id"]]
        assert [event.seq for event in own] == list(range(1, len(own) + 1))
        assert own[-1].type == "succeeded"
    assert len({event.task_id for event in events}) == 2


def test_a_picture_is_made_again_from_itself(service: Service, tmp_path: Path) -> None:
    """The second of two: the same pixels, from nothing but its file."""
    out = ("--out", str(tmp_path))
    done = command(
        service, "submit", "a large red star on a blue background", *STEPS, "--images", "2",
        "--set", "eta=0.5", "--scheduler", "ddim", "--set", 'metadata={"customer": "18"}', *out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    second = done.stdout.splitlines()[-1]
    assert second.endswith("1.png")
    again = command(service, "submit", "--from-image", second, *out)
    assert again.returncode == 0, again.stderr
    difference = pixels(second).astype(int) - pixels(again.stdout.splitlines()[-1]).astype(int)
    assert np.abs(difference).max() <= 1


def test_the_queue_says_who_is_doing_what(service: Service) -> None:
    """For people a line for each model and worker; for machines the same as JSON."""
    long = service.client.submit(LONG, "queue-shown")
    wait_for(long, "progress")
    for _ in range(3):
        service.client.submit({"prompt": "x", "priority": 9})
    shown = command(service, "queue")
    assert shown.returncode == 0, shown.stderr
    assert any("queue-shown" in line for line in shown.stdout.splitlines()[1:])
    told = json.loads(command(service, "queue", "--json").stdout)
    (worker,) = told["workers"].values()
    assert (worker["device"], worker["refusal"]) == ("cpu", None)
    assert "default" in told["queues"]
    long.cancel()
    wait_until(lambda: long.status().is_terminal)
    assert "\x1b" not in shown.stdout


def test_several_ways_at_once_are_refused(service: Service) -> None:
    """What to make is said once; nothing is sent."""
    for arguments in ([], ["x", "--prompts", "-"], ["x", "--request", "-"]):
        done = command(service, "submit", *arguments, given="")
        assert (done.returncode, done.stdout) == (2, "")
        assert "--from-image" in done.stderr


def test_a_fault_is_named_with_its_request(service: Service) -> None:
    """Of many the number, too."""
    lines = '{"prompt": "x"}\n{"prompt": "x", "nope": 1}\n'
    done = command(service, "submit", "--request", "-", given=lines)
    assert (done.returncode, done.stdout) == (2, "")
    assert "[1].nope" in done.stderr
