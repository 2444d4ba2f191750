"""Each change inside a worker, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.chaos.deployment import SITE
from tests.chaos.machine import ROOT
from tests.chaos.site import patches

#: A task that a second worker has taken over, and the answer to a write of the first.
FORMER_OWNER = """
import sys
from redis import Redis
from api_contracts.names import Keys
from worker.record.claim import NewEvent
from worker.record.task_record import TaskRecord
redis = Redis.from_url(sys.argv[1], protocol=2)
keys = Keys(sys.argv[2])
old, new = (TaskRecord(redis, keys, name, record_ttl_s=60, lease_s=9) for name in ("old", "new"))
ask = dict(
    started={"model": "m"}, request="{}", queue="q", deadline_s=None, expires_at_s=None,
    max_attempts=9,
)
claim = old.claim("t", **ask)
redis.hset(keys.task("t"), "lease_until", 0)
assert new.claim("t", **ask).fence == 2
print(old.write([NewEvent(claim, "progress", {})])[0].name)
"""
POISONED = """
import sys
from concurrent.futures import Future
from types import SimpleNamespace
from worker.engine.engine import Engine
from worker.job_control import Control, Step
control = Control()
Engine({}, "cpu", "none").submit(SimpleNamespace(prompts=(sys.argv[1],), model="x"), control)
control.on_step(Step(1, 3, 0.0))
print("lives", flush=True)
control.on_step(Step(2, 3, 0.0))
"""
CLOCK = "import time, datetime; print(time.time() - datetime.datetime.now().timestamp())"


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": f"{SITE}{os.pathsep}{ROOT}", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_the_fence_a_former_owner_writes(redis_url: str, namespace: str) -> None:
    """With the fence off a former owner's event is written, and logged; otherwise it is refused."""
    usual = python(FORMER_OWNER, redis_url, f"{namespace}a")
    assert usual.stdout == "SUPERSEDED\n", usual.stderr
    off = python(FORMER_OWNER, redis_url, f"{namespace}b", **{patches.OFF: "fence"})
    assert off.stdout == "WRITTEN\n", off.stderr
    assert patches.OFF_LINE % "fence" in off.stderr


@pytest.mark.parametrize(("prompt", "status"), [("a red circle", 0), ("a red POISON", -9)])
def test_poison_kills_its_process_at_a_step(prompt: str, status: int) -> None:
    """Only a prompt with the mark kills its process, and not before the second step."""
    done = python(POISONED, prompt, **{patches.POISON: "POISON"})
    assert done.returncode == status, done.stderr
    assert done.stdout == "lives\n"


def test_the_wall_clock_can_be_shifted() -> None:
    """`time.time` is shifted by the given seconds."""
    done = python(CLOCK, **{patches.CLOCK: "-180"})
    assert float(done.stdout) == pytest.approx(-180, abs=5)
