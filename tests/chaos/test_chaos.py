"""The real daemon under a short schedule of faults: minutes of real processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.chaos import invariants, report, stream_laws
from tests.chaos.run import Plan, conduct
from tests.chaos.schedule import Kind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.chaos.run import Findings
    from tests.chaos.stream_laws import Broken

#: So that tasks that are taken again and again end.
SOON_OVER = {"SAG_MAX_ATTEMPTS": "4"}

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


def told(findings: Findings, tmp_path: Path) -> str:
    """All that was found, for the message of a test that fails."""
    report.save(findings, tmp_path)
    return (tmp_path / "chaos.md").read_text()


def test_a_disturbed_run_breaks_no_law(tmp_path: Path) -> None:
    """Forty tasks, a fault every three seconds: all end once, with the undisturbed bytes."""
    plan = Plan(
        tasks=40,
        seconds=30,
        every_s=3,
        machines=2,
        kinds=frozenset(Kind),
        requests=8,
        poison_in=None,
        patience_s=60,
    )
    findings = conduct(plan, tmp_path / "run", print)
    assert report.is_green(findings), told(findings, tmp_path)
    assert len(findings.tasks) == 40
    assert len(findings.struck) >= 5


def test_without_the_fence_two_tell_of_one_task(tmp_path: Path) -> None:
    """A frozen worker that was overtaken, and whose writes are let in, is seen."""
    plan = Plan(
        tasks=None, seconds=50, machines=2, off="fence", requests=4, more_steps=60, backlog=12,
        poison_in=None, patience_s=30, kinds=frozenset({Kind.FREEZE}), every_s=13,
        settings=SOON_OVER | {"SAG_SLOTS": "12"},  # whoever is awake takes all at once
    )  # fmt: skip
    findings = conduct(plan, tmp_path / "run", print)
    assert findings.switched
    assert findings.breaches(*invariants.DOUBLING), told(findings, tmp_path)


@pytest.mark.skipif("CHAOS_ALL" not in os.environ, reason="three more minutes; CHAOS_ALL=1 runs it")
@pytest.mark.parametrize(
    ("off", "kinds", "law"),
    [
        ("lease", frozenset(), stream_laws.no_living_owner_is_robbed),
        ("reconciler", frozenset({Kind.MESSAGES_LOST}), stream_laws.none_is_lost),
    ],
)
def test_what_is_turned_off_is_missed(
    off: str, kinds: frozenset[Kind], law: Callable[..., Broken], tmp_path: Path
) -> None:
    """Without the lease's renewal or the reconciler the suite turns red."""
    plan = Plan(
        tasks=60, machines=2, kinds=kinds, off=off, requests=8, poison_in=None, patience_s=20,
        settings={"SAG_LEASE_S": "2", "SAG_SLOTS": "4"},
    )  # fmt: skip
    findings = conduct(plan, tmp_path / "run", print)
    assert findings.switched
    assert findings.breaches(law), told(findings, tmp_path)
