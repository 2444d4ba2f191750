"""Real workers under a short schedule of faults, and with a mechanism turned off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos import invariants, other_laws, others, report, stream_laws
from tests.chaos.fault_schedule import FaultKind
from tests.chaos.plan import Plan
from tests.chaos.run import run_plan
from tests.chaos.submissions import Expected

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.chaos.findings import Findings
    from tests.chaos.stream_laws import Broken

#: Tasks that are taken over again and again end soon.
FEW_ATTEMPTS = {"SAG_MAX_ATTEMPTS": "4"}

pytestmark = pytest.mark.timeout(600)


def tables(findings: Findings, tmp_path: Path) -> str:
    """The tables of a run, for the message of a test that fails."""
    report.save(findings, tmp_path)
    return (tmp_path / "chaos.md").read_text()


@pytest.mark.slow
def test_faults_break_no_law(tmp_path: Path) -> None:
    """Each of forty tasks ends once, with the reference's bytes, under a fault every 3 s."""
    plan = Plan(
        tasks=40,
        seconds=30,
        every_s=3,
        least_faults=5,  # faults wait until a machine may be hit: on a slow one, past `seconds`
        machines=2,
        kinds=frozenset(FaultKind),
        requests=8,
        poison_in=None,
        patience_s=60,
    )
    findings = run_plan(plan, tmp_path / "run", print)
    assert report.is_green(findings), tables(findings, tmp_path)
    drawn = [each for each in findings.tasks.values() if each.expects is not Expected.NOT_LOADED]
    assert len(drawn) == 40
    assert len(findings.applied) >= 5


@pytest.mark.nightly
def test_failovers_break_no_law(tmp_path: Path) -> None:
    """Each task ends once while sentinels promote replicas and workers are killed."""
    plan = Plan(
        tasks=40, seconds=60, every_s=8, machines=2, requests=8, poison_in=None, patience_s=60,
        kinds=frozenset({FaultKind.FAILOVER, FaultKind.KILL_CHILD}), sentinel=True,
    )  # fmt: skip
    findings = run_plan(plan, tmp_path / "run", print)
    assert report.is_green(findings), tables(findings, tmp_path)
    assert any(each.fault.kind is FaultKind.FAILOVER for each in findings.applied)


@pytest.mark.slow
def test_messages_lost_beside_others_come_back(tmp_path: Path) -> None:
    """No task is lost or ends twice when its message is lost, with 300 tasks that wait below."""
    plan = Plan(
        tasks=12, seconds=12, every_s=3, machines=2, requests=4, poison_in=None, patience_s=60,
        kinds=frozenset({FaultKind.MESSAGES_LOST}), others=300,
    )  # fmt: skip
    findings = run_plan(plan, tmp_path / "run", print)
    assert report.is_green(findings), tables(findings, tmp_path)
    assert len(findings.evidence.others) == 300
    assert any(
        task_id.startswith(others.PREFIX) for each in findings.applied for task_id in each.tasks
    )


@pytest.mark.nightly
@pytest.mark.parametrize("sentinel", [False, True])
def test_faults_above_many_others_break_no_law(sentinel: bool, tmp_path: Path) -> None:
    """No fault loses or doubles one of forty tasks, or of the 2,000 that wait below them."""
    plan = Plan(
        tasks=40, seconds=60, every_s=4, machines=2, requests=8, poison_in=None, patience_s=60,
        others=2000, sentinel=sentinel,
    )  # fmt: skip
    findings = run_plan(plan, tmp_path / "run", print)
    assert report.is_green(findings), tables(findings, tmp_path)
    assert any(each.status == "queued" for each in findings.evidence.others.values())


@pytest.mark.nightly
def test_without_the_reconciler_others_are_lost(tmp_path: Path) -> None:
    """A message that is lost among the others and not sent again breaks their law."""
    plan = Plan(
        tasks=12, seconds=12, every_s=3, machines=2, requests=4, poison_in=None, patience_s=5,
        kinds=frozenset({FaultKind.MESSAGES_LOST}), others=300, off="reconciler",
    )  # fmt: skip
    findings = run_plan(plan, tmp_path / "run", print)
    assert findings.switched
    assert findings.breaches(other_laws.others_are_kept), tables(findings, tmp_path)


@pytest.mark.nightly
def test_without_the_fence_two_workers_write_to_one_task(tmp_path: Path) -> None:
    """The laws find the writes of a stopped worker whose task another one has taken over.

    `test_patches.py` has the fast form: without the fence such a write succeeds.
    """
    plan = Plan(
        tasks=None, seconds=50, machines=2, off="fence", requests=4, more_steps=60, backlog=12,
        poison_in=None, patience_s=30, kinds=frozenset({FaultKind.FREEZE}), every_s=13,
        settings=FEW_ATTEMPTS | {"SAG_SLOTS": "12"},  # the running worker takes all at once
    )  # fmt: skip
    findings = run_plan(plan, tmp_path / "run", print)
    assert findings.switched
    assert findings.breaches(*invariants.DOUBLING), tables(findings, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("off", "kinds", "law"),
    [
        ("lease", frozenset(), stream_laws.no_takeover_from_a_living_worker),
        ("reconciler", frozenset({FaultKind.MESSAGES_LOST}), stream_laws.every_task_ends),
    ],
)
def test_a_mechanism_that_is_turned_off_breaks_its_law(
    off: str, kinds: frozenset[FaultKind], law: Callable[..., Broken], tmp_path: Path
) -> None:
    """Without the renewal of leases, or without the reconciler, a law is broken."""
    plan = Plan(
        tasks=60, machines=2, kinds=kinds, off=off, requests=8, poison_in=None, patience_s=20,
        settings={"SAG_LEASE_S": "2", "SAG_SLOTS": "4"},
    )  # fmt: skip
    findings = run_plan(plan, tmp_path / "run", print)
    assert findings.switched
    assert findings.breaches(law), tables(findings, tmp_path)
