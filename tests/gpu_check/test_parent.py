"""A part ends within its seconds, whatever it does, and the report says how."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.gpu_check import parent, setting
from benchmarks.gpu_check.outcome import Status
from benchmarks.gpu_check.parts import Part

if TYPE_CHECKING:
    from benchmarks.gpu_check.outcome import Outcome
    from benchmarks.gpu_check.setting import Setting

PACKAGE = "tests.gpu_check.odd_parts"


def part(name: str, limit_s: float = 20, needs_s: float = 0) -> Part:
    return Part(name, name, "", limit_s, needs_s, sd15=False, package=PACKAGE)


def run(given: Setting, *parts: Part, seconds: float = 60) -> tuple[list[Outcome], list[int]]:
    """What was found, and how many outcomes each report had."""
    lengths: list[int] = []
    deadline_s = time.monotonic() + seconds
    found = parent.run(
        parts, given, deadline_s, lambda found: lengths.append(len(found)), preloaded="json"
    )
    return found, lengths


def is_running(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@pytest.fixture(scope="module", autouse=True)
def _fork_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The server that parts are forked from starts once."""
    run(setting.rehearsal(tmp_path_factory.mktemp("first")), part("lacks"))


def test_a_part_that_hangs_is_ended_with_its_children(given: Setting) -> None:
    """A part that hangs is killed at its limit with its children, and what it found is kept."""
    (found,), _ = run(given, part("hangs", limit_s=1.5))
    assert found.status is Status.KILLED
    assert found.reason == "ended at its limit of 2 s; what it had found until then is here"
    assert found.log == "waiting for nothing"
    (row,) = found.rows
    assert 1.4 < found.seconds < 7
    end_s = time.monotonic() + 5
    while is_running(int(str(row["child"]))) and time.monotonic() < end_s:
        time.sleep(0.01)
    assert not is_running(int(str(row["child"])))


def test_how_parts_end(given: Setting) -> None:
    """Each kind of failure has a status and a reason of its own, and the other parts still run."""
    parts = [part(name) for name in ("dies", "raises", "unmet", "lacks")]
    (dies, raises, unmet, lacks), lengths = run(given, *parts)
    assert (dies.status, dies.headline) == (Status.FAILED, "half of it")
    assert dies.reason == "its process ended with exit status 3"
    assert (raises.status, raises.reason) == (Status.FAILED, "ValueError: no such thing")
    assert "raise ValueError(message)" in raises.log
    assert (unmet.status, unmet.reason) == (Status.FAILED, "fire is cold")
    assert (lacks.status, lacks.reason) == (Status.SKIPPED, "there is no moon")
    assert lengths == [1, 2, 3, 4]  # the report is written after each


def test_what_no_longer_fits_is_not_reached(given: Setting) -> None:
    """A part that needs more seconds than are left is not started; a shorter one still is."""
    left_s = parent.RESERVE_S + 10
    (long, short), _ = run(given, part("unmet", needs_s=30), part("lacks"), seconds=left_s)
    assert long.status is Status.NOT_REACHED
    assert long.reason in ("10 s were left, it needs 30 s", "9 s were left, it needs 30 s")
    assert short.status is Status.SKIPPED


def test_the_total_limits_each_part(given: Setting) -> None:
    """A part whose own limit is longer ends with the whole run."""
    (found,), _ = run(given, part("hangs"), seconds=parent.RESERVE_S + 1)
    assert found.status is Status.KILLED
    assert found.seconds < 7


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ("environment", "the device can't be used: see the environment"),
        ("weights", "there are no weights of Stable Diffusion 1.5's size"),
    ],
)
def test_parts_that_can_not_run_any_more(
    given: Setting, monkeypatch: pytest.MonkeyPatch, first: str, reason: str
) -> None:
    """Without a device no part runs, and without weights no part that needs them."""
    monkeypatch.setattr(parent, {"environment": "FIRST", "weights": "WEIGHTS"}[first], "raises")
    later = replace(part("unmet"), sd15=True)
    (_, found), _ = run(given, part("raises"), later)
    assert (found.status, found.reason) == (Status.SKIPPED, reason)


def test_what_needs_a_gpu_is_skipped_in_the_rehearsal(given: Setting) -> None:
    """A part that needs a GPU is skipped with that reason, however little time is left."""
    (found,), _ = run(given, replace(part("hangs", needs_s=99), gpu_only=True), seconds=1)
    assert (found.status, found.reason) == (Status.SKIPPED, "only on a GPU")


def test_a_part_leaves_the_environment_of_the_check(given: Setting) -> None:
    """Two threads for each process on few cores only wait for each other."""
    run(given, part("lacks"))
    assert os.environ["OMP_NUM_THREADS"] == "1"
