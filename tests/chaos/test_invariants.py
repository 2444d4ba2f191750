"""Every law holds for a correct run, and is broken by some change of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from api_contracts.events import EVENT
from api_contracts.names import Keys
from tests.chaos import invariants, other_laws, store_laws, stream_laws
from tests.chaos.correct_run import (
    CORRECT,
    EXHAUSTED,
    RESULT,
    correct,
    events,
    renumbered,
    with_end,
    with_of,
    with_stream,
)
from tests.chaos.evidence import CeleryResult, Evidence, Record, refused_writes
from tests.chaos.fault_injector import AppliedFault
from tests.chaos.fault_schedule import Fault, FaultKind
from tests.chaos.recorded_events import StreamEntry
from tests.chaos.submissions import Expected
from tests.chaos.worker_logs import Claim, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.stream_laws import Broken

DONE = CORRECT["done"]
START = DONE[:2]
LAST = DONE[-1]
WRONG: list[tuple[Callable[..., Broken], str, Callable[[Evidence], Evidence]]] = [
    (stream_laws.every_task_ends, "no end", with_stream(DONE[:-1])),
    (stream_laws.every_task_ends, "no stream", with_of("streams", "poison", None)),
    (stream_laws.one_end, "two successes", with_stream([*DONE, LAST])),
    (stream_laws.one_end, "two kinds", with_stream([*DONE, ("cancelled", 2, None)])),
    (stream_laws.nothing_after_the_end, "progress", with_stream([*DONE, ("progress", 2, "c")])),
    (stream_laws.nothing_after_the_end, "a start", with_stream([*DONE, ("started", 3, "d")])),
    (
        stream_laws.numbers_without_gaps, "a gap",
        lambda found: renumbered(found, [1, 2, 3, 4, 5, 6, 7, 8, 9, 11], entries=True),
    ),
    (
        stream_laws.numbers_without_gaps, "another in the event",
        lambda found: renumbered(found, [1, 2, 3, 4, 5, 6, 7, 8, 9, 9], entries=False),
    ),
    (
        stream_laws.attempts_never_fall, "a fall",
        with_stream([*START, ("started", 2, "b"), ("progress", 1, "b"), LAST]),
    ),
    (
        stream_laws.one_owner, "one attempt started twice",
        with_stream([*START, ("started", 1, "b"), ("succeeded", 1, "b")]),
    ),
    (
        stream_laws.attempts_never_fall, "given back by more than one",
        with_stream([*DONE[:-1], ("requeued", 2, "c"), ("cancelled", 0, None)]),
    ),
    (
        stream_laws.one_owner, "the former owner writes on",
        with_stream([*START, ("started", 2, "b"), ("progress", 2, "a"), ("succeeded", 2, "b")]),
    ),
    (
        stream_laws.one_owner, "the former owner ends it",
        with_stream([*START, ("started", 2, "b"), ("succeeded", 2, "a")]),
    ),
    (
        stream_laws.one_owner, "it writes on after its requeue",
        with_stream([*START, ("requeued", 1, "a"), ("progress", 1, "a")]),
    ),
    (
        stream_laws.one_fence_one_claim, "two with one fence",
        lambda found: replace(
            found, claims=(*found.claims, Claim("done", 2, 2, WorkerProcess("machine-2-1", 9), 0.0))
        ),
    ),
    (stream_laws.clients_read_the_stream, "nothing", with_of("client_events", "done", None)),
    (
        stream_laws.clients_read_the_stream, "another end",
        with_of(
            "client_events", "left",
            tuple(events("left", [*CORRECT["left"][:-1], ("expired", 0, None)])),
        ),
    ),
    (
        stream_laws.clients_read_the_stream, "one twice",
        lambda found: with_of(
            "client_events", "left",
            (found.client_events["left"][0], *found.client_events["left"]),
        )(found),
    ),
    (
        stream_laws.clients_raise_documented_errors, "an error",
        lambda found: replace(found, client_errors=(("done", "ValueError"),)),
    ),
    (
        store_laws.pictures_are_the_reference, "other bytes than the result says",
        with_of("objects", "outputs/done/0.png", "cc"),
    ),
    (
        store_laws.pictures_are_the_reference, "other bytes than the reference",
        with_of("reference", 0, ("cc",)),
    ),
    (
        store_laws.pictures_are_the_reference, "one picture too few",
        with_of("objects", "outputs/done/0.png", None),
    ),
    (store_laws.manifests_agree, "none", with_of("manifests", RESULT["manifest_key"], None)),
    (
        store_laws.manifests_agree, "another task's",
        with_of("manifests", "outputs/done/manifest.json", {"task_id": "other"}),
    ),
    (
        stream_laws.ends_are_expected, "cancelled without a request",
        lambda found: replace(found, cancels=frozenset()),
    ),
    (stream_laws.ends_are_expected, "failed", with_end("failed")),
    (stream_laws.ends_are_expected, "expired", with_end("expired")),
    (
        stream_laws.ends_are_expected, "without its model",
        with_end("succeeded", Expected.NOT_LOADED),
    ),
    (
        stream_laws.ends_are_expected, "poison succeeds",
        with_end("succeeded", Expected.EXHAUSTED),
    ),
    (store_laws.record_agrees, "none", with_of("records", "done", None)),
    (store_laws.record_agrees, "another end", with_of("records", "done", Record("failed", RESULT))),
    (
        store_laws.record_agrees, "another result",
        with_of("records", "done", Record("succeeded", RESULT | {"batch": 2.0})),
    ),
    (store_laws.celery_agrees, "nothing", with_of("celery_results", "done", None)),
    (
        store_laws.celery_agrees, "still running",
        with_of("celery_results", "done", CeleryResult("STARTED", {})),
    ),
    (
        store_laws.celery_agrees, "another result",
        with_of("celery_results", "done", CeleryResult("SUCCESS", RESULT | {"batch": 2.0})),
    ),
    (
        store_laws.celery_agrees, "another error",
        with_of("celery_results", "poison", CeleryResult("FAILURE", {"exc_message": ["internal"]})),
    ),
    (
        stream_laws.no_takeover_from_a_living_worker, "many",
        lambda found: replace(found, takeovers=(("done", "b took it"),) * 3),
    ),
    (store_laws.ends_are_pushed, "no push", with_of("replies", "done", None)),
    (
        store_laws.ends_are_pushed, "of another event",
        with_of("replies", "done", (events("done", DONE)[-2], events("done", DONE)[-1])),
    ),
    (
        store_laws.ends_are_pushed, "without a reply_to",
        with_of("replies", "poison", (events("poison", CORRECT["poison"])[-1],)),
    ),
    (
        store_laws.schemas_hold, "an event",
        lambda found: replace(found, unpublished=(("sag:{done}:events", "event seq: 0"),)),
    ),
    (store_laws.objects_are_known, "elsewhere", with_of("objects", "etc/passwd", "aa")),
    (
        store_laws.objects_are_known, "of an unknown task",
        with_of("objects", "outputs/x/0.png", "aa"),
    ),
    (store_laws.objects_are_known, "another name", with_of("objects", "outputs/done/a.sh", "aa")),
    (
        store_laws.keys_are_known, "another key",
        lambda found: replace(found, keys=found.keys | {"sag:lock"}),
    ),
    (
        store_laws.keys_are_known, "of an unknown task",
        lambda found: replace(found, keys=found.keys | {Keys().task("../../etc/passwd")}),
    ),
    (store_laws.nothing_is_left, "a message", with_of("left", "sag.unacked", 1)),
    (
        store_laws.nothing_is_left, "a checkpoint",
        lambda found: replace(found, keys=found.keys | {Keys().checkpoint("done")}),
    ),
]  # fmt: skip


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
