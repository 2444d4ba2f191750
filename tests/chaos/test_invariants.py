"""Every law holds for a correct run, and is broken by some change of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from api_contracts.events import EVENT
from tests.chaos import invariants, other_laws
from tests.chaos.broken_runs import DONE, WRONG
from tests.chaos.correct_run import EXHAUSTED, correct, with_of, with_stream
from tests.chaos.evidence import Evidence, Record, refused_writes
from tests.chaos.fault_injector import AppliedFault
from tests.chaos.fault_schedule import Fault, FaultKind
from tests.chaos.recorded_events import StreamEntry

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.stream_laws import Broken


def test_a_correct_run_breaks_no_law() -> None:
    """Tasks that were drained, taken over, cancelled, refused or exhausted break no law."""
    assert invariants.check(correct()) == []


@pytest.mark.parametrize(
    ("law", "change"),
    [pytest.param(law, change, id=f"{law.__name__}: {name}") for law, name, change in WRONG],
)
def test_a_breach_is_found(
    law: Callable[..., Broken], change: Callable[[Evidence], Evidence]
) -> None:
    """A change that breaks a law is reported under that law's name."""
    assert law.__name__ in {each.law for each in invariants.check(change(correct()))}


def test_a_record_may_say_more_of_an_end_than_its_event() -> None:
    """A record that also says whose deadline a task passed agrees with the event."""
    found = correct()
    left = Record("cancelled", {"step": 0, "by_message": False})
    assert invariants.check(replace(found, records={**found.records, "left": left})) == []


def test_each_law_can_be_broken() -> None:
    """Every law has an example that breaks it, here or in `test_others.py`."""
    assert {law for law, _, _ in WRONG} == set(invariants.LAWS) - set(other_laws.LAWS)


def test_a_client_of_a_lost_task_may_have_read_less() -> None:
    """The client of a task without an end may have read fewer events than were written."""
    lost = with_of("replies", "done", None)(with_stream(DONE[:-1])(correct()))
    short = replace(
        lost, client_events={**lost.client_events, "done": lost.client_events["done"][:4]}
    )
    assert {each.law for each in invariants.check(short)} == {
        "every_task_ends",
    }


def test_a_store_that_refused_the_pictures_is_no_breach() -> None:
    """While a store refuses conditional writes a task may fail, if its error names the setting."""
    fault = Fault(0, FaultKind.S3_CONDITIONS, 1.0, 0, 2.0, 0.5)
    applied = [AppliedFault(fault, at_s=100.0)]
    error = EXHAUSTED | {"code": "storage_unavailable", "message": "set SAG_S3_CONDITIONAL_WRITES"}
    fields = {"task_id": "t", "seq": 1, "attempt": 1, "at": "2026-01-01T00:00:00Z"}

    def excused(at_s: float, **changes: str) -> set[str]:
        whole = {**fields, "type": "failed", "worker": "a", "error": {**error, **changes}}
        entry = StreamEntry(1, EVENT.validate_python(whole), at_s)
        return set(refused_writes({"t": [entry]}, applied))

    assert excused(101.0) == {"t"}
    assert excused(99.0) == excused(200.0) == set()
    assert excused(101.0, message="no") == excused(101.0, code="internal") == set()
