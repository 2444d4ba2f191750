"""Every law of the chaos suite holds for a sound history and can be broken."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts.events import EVENT, Event
from api_contracts.names import Keys
from tests.chaos import invariants, store_laws, stream_laws
from tests.chaos.evidence import Answer, Evidence, Record
from tests.chaos.history import Told
from tests.chaos.journal import Child, Claim
from tests.chaos.orders import Expect, Order, Way

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.chaos.stream_laws import Broken

RESULT = {
    "images": [
        {"key": "outputs/done/0.png", "url": "http://x", "sha256": "aa", "bytes": 1, "width": 64,
         "height": 64, "seed": 3, "nsfw_content_detected": None},
    ],
    "manifest_key": "outputs/done/manifest.json",
    "timings": dict.fromkeys(
        ("queued_s", "load_s", "encode_s", "denoise_s", "decode_s", "upload_s", "total_s"), 1.0
    ),
    "batch": 1.0, "model": "default", "scheduler": "ddim", "parameters": {"eta": 0.0},
    "truncated": [], "versions": {"torch": "2"},
}  # fmt: skip
EXHAUSTED = {"code": "attempts_exhausted", "message": "m", "retryable": False, "details": {}}
REFUSED = EXHAUSTED | {"code": "invalid_request"}
MORE: dict[str, dict[str, Any]] = {
    "queued": {"queue": "generate.default"},
    "started": {"model": "default", "device": "cpu"},
    "progress": {"step": 1, "total_steps": 2},
    "uploading": {"images": 1},
    "requeued": {"reason": "drained"},
    "succeeded": {"result": RESULT},
    "failed": {"error": EXHAUSTED},
    "cancelled": {"step": 0},
    "expired": {"step": 0},
}
#: Kind, attempt, worker of each event, by task.
SOUND: dict[str, list[tuple[str, int, str | None]]] = {
    # Drained once, frozen once: the first attempt starts twice, the second has another owner.
    "done": [
        ("queued", 0, None), ("started", 1, "a"), ("progress", 1, "a"), ("requeued", 1, "a"),
        ("started", 1, "b"), ("progress", 1, "b"), ("started", 2, "c"), ("progress", 2, "c"),
        ("uploading", 2, "c"), ("succeeded", 2, "c"),
    ],
    # Drained, then cancelled while it waited.
    "left": [
        ("queued", 0, None), ("started", 1, "a"), ("requeued", 1, "a"), ("cancelled", 0, None),
    ],
    # Ended by a claim of one that never started it.
    "poison": [("started", 1, "a"), ("progress", 1, "a"), ("failed", 1, "b")],
    "broken": [("failed", 1, "a")],
}  # fmt: skip


def events(task_id: str, rows: Sequence[tuple[str, int, str | None]]) -> list[Event]:
    made = []
    for number, (kind, attempt, worker) in enumerate(rows, 1):
        fields: dict[str, Any] = {
            "task_id": task_id, "seq": number, "attempt": attempt, "type": kind, "worker": worker,
            "at": "2026-01-01T00:00:00Z", **MORE[kind],
        }  # fmt: skip
        if task_id == "broken":
            fields["error"] = REFUSED
        made.append(EVENT.validate_python(fields))
    return made


def sound() -> Evidence:
    """Four tasks that ended as they should."""
    orders = {
        "done": Order("done", 0, replies=True),
        "left": Order("left", 0),
        "poison": Order("poison", 0, Way.CELERY, Expect.EXHAUSTED),
        "broken": Order("broken", 0, Way.RAW, Expect.REFUSED),
    }
    streams = {task_id: events(task_id, rows) for task_id, rows in SOUND.items()}
    manifest = {k: v for k, v in RESULT.items() if k not in ("timings", "batch")}
    image = {k: v for k, v in RESULT["images"][0].items() if k != "url"}  # type: ignore[index]  # the dict above
    keys = {"sag:open", "sag:dead", "sag.unacked", "_kombu.binding.generate.default"}
    return Evidence(
        orders=orders,
        cancels=frozenset({"left"}),
        streams={task_id: told(stream) for task_id, stream in streams.items()},
        seen={task_id: tuple(stream) for task_id, stream in streams.items()},
        broke=(),
        records={
            "done": Record("succeeded", RESULT),
            "left": Record("cancelled", {"step": 0}),
            "poison": Record("failed", EXHAUSTED),
            "broken": Record("failed", REFUSED),
        },
        answers={
            "done": Answer("SUCCESS", RESULT),
            "poison": Answer("FAILURE", {"exc_message": ["attempts_exhausted"]}),
            "broken": Answer("FAILURE", {"exc_message": ["invalid_request"]}),
        },
        claims=(
            Claim("done", 1, 1, Child("machine-0-1", 5), 0.0),
            Claim("done", 1, 2, Child("machine-1-1", 5), 0.0),
        ),
        reference={0: ("aa",)},
        objects={"outputs/done/0.png": "aa", "outputs/done/manifest.json": "bb"},
        manifests={"outputs/done/manifest.json": manifest | {"task_id": "done", "images": [image]}},
        keys=frozenset(keys | {Keys().task("done"), "celery-task-meta-done"}),
        replies={"done": (streams["done"][-1],) * 2},
        left={"sag.unacked": 0},
    )


def told(stream: Sequence[Event]) -> tuple[Told, ...]:
    return tuple(Told(number, event) for number, event in enumerate(stream, 1))


def with_stream(rows: Sequence[tuple[str, int, str | None]]) -> Callable[[Evidence], Evidence]:
    """Task `done` with other events, which its client was told."""

    def change(evidence: Evidence) -> Evidence:
        stream = events("done", rows)
        streams = {**evidence.streams, "done": told(stream)}
        return replace(evidence, streams=streams, seen={**evidence.seen, "done": tuple(stream)})

    return change


def renumbered(evidence: Evidence, numbers: Sequence[int], *, entries: bool) -> Evidence:
    stream = [
        Told(
            number if entries else seq,
            event.model_copy(update={"seq": number}),
        )
        for seq, (number, event) in enumerate(zip(numbers, evidence.known("done"), strict=True), 1)
    ]
    return replace(evidence, streams={**evidence.streams, "done": tuple(stream)})


def with_of(name: str, task_id: Any, value: object) -> Callable[[Evidence], Evidence]:
    """One entry of a mapping changed; taken out when None."""

    def change(evidence: Evidence) -> Evidence:
        entries: Any = {**getattr(evidence, name), task_id: value}
        if value is None:
            del entries[task_id]
        return replace(evidence, **{name: entries})

    return change


def with_end(kind: str, expects: Expect = Expect.PICTURES) -> Callable[[Evidence], Evidence]:
    def change(evidence: Evidence) -> Evidence:
        changed = with_stream([*SOUND["done"][:-1], (kind, 2, "c")])(evidence)
        order = replace(evidence.orders["done"], expects=expects)
        return replace(changed, orders={**evidence.orders, "done": order})

    return change


DONE = SOUND["done"]
START = DONE[:2]
LAST = DONE[-1]
WRONG: list[tuple[Callable[..., Broken], str, Callable[[Evidence], Evidence]]] = [
    (stream_laws.none_is_lost, "no end", with_stream(DONE[:-1])),
    (stream_laws.none_is_lost, "no stream", with_of("streams", "poison", None)),
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
        stream_laws.one_owner, "the old one tells on",
        with_stream([*START, ("started", 2, "b"), ("progress", 2, "a"), ("succeeded", 2, "b")]),
    ),
    (
        stream_laws.one_owner, "the old one ends it",
        with_stream([*START, ("started", 2, "b"), ("succeeded", 2, "a")]),
    ),
    (
        stream_laws.one_owner, "it tells on after it gave it back",
        with_stream([*START, ("requeued", 1, "a"), ("progress", 1, "a")]),
    ),
    (
        stream_laws.one_fence_one_claim, "two of one fence",
        lambda found: replace(
            found, claims=(*found.claims, Claim("done", 2, 2, Child("machine-2-1", 9), 0.0))
        ),
    ),
    (stream_laws.client_saw_the_stream, "nothing", with_of("seen", "done", None)),
    (
        stream_laws.client_saw_the_stream, "another end",
        with_of("seen", "left", tuple(events("left", [*SOUND["left"][:-1], ("expired", 0, None)]))),
    ),
    (
        stream_laws.client_saw_the_stream, "one twice",
        lambda found: with_of("seen", "left", (found.seen["left"][0], *found.seen["left"]))(found),
    ),
    (
        stream_laws.clients_never_break, "an error",
        lambda found: replace(found, broke=(("done", "ValueError"),)),
    ),
    (
        store_laws.pictures_are_those_of_an_undisturbed_run, "other bytes than the result says",
        with_of("objects", "outputs/done/0.png", "cc"),
    ),
    (
        store_laws.pictures_are_those_of_an_undisturbed_run, "other bytes than undisturbed",
        with_of("reference", 0, ("cc",)),
    ),
    (
        store_laws.pictures_are_those_of_an_undisturbed_run, "one picture too few",
        with_of("objects", "outputs/done/0.png", None),
    ),
    (store_laws.manifests_agree, "none", with_of("manifests", RESULT["manifest_key"], None)),
    (
        store_laws.manifests_agree, "another task's",
        with_of("manifests", "outputs/done/manifest.json", {"task_id": "other"}),
    ),
    (
        stream_laws.ends_have_their_reason, "cancelled unasked",
        lambda found: replace(found, cancels=frozenset()),
    ),
    (stream_laws.ends_have_their_reason, "failed", with_end("failed")),
    (stream_laws.ends_have_their_reason, "expired", with_end("expired")),
    (
        stream_laws.ends_have_their_reason, "poison succeeds",
        with_end("succeeded", Expect.EXHAUSTED),
    ),
    (store_laws.record_agrees, "none", with_of("records", "done", None)),
    (store_laws.record_agrees, "another end", with_of("records", "done", Record("failed", RESULT))),
    (
        store_laws.record_agrees, "another result",
        with_of("records", "done", Record("succeeded", RESULT | {"batch": 2.0})),
    ),
    (store_laws.celery_agrees, "nothing", with_of("answers", "done", None)),
    (store_laws.celery_agrees, "still running", with_of("answers", "done", Answer("STARTED", {}))),
    (
        store_laws.celery_agrees, "another result",
        with_of("answers", "done", Answer("SUCCESS", RESULT | {"batch": 2.0})),
    ),
    (
        store_laws.celery_agrees, "another error",
        with_of("answers", "poison", Answer("FAILURE", {"exc_message": ["internal"]})),
    ),
    (
        stream_laws.no_living_owner_is_robbed, "many",
        lambda found: replace(found, robbed=(("done", "b took it"),) * 3),
    ),
    (store_laws.ends_are_pushed, "nobody was told", with_of("replies", "done", None)),
    (
        store_laws.ends_are_pushed, "of something else",
        with_of("replies", "done", (events("done", DONE)[-2], events("done", DONE)[-1])),
    ),
    (
        store_laws.ends_are_pushed, "whom nobody named",
        with_of("replies", "poison", (events("poison", SOUND["poison"])[-1],)),
    ),
    (
        store_laws.all_is_as_published, "an event",
        lambda found: replace(found, unpublished=(("sag:{done}:events", "event seq: 0"),)),
    ),
    (store_laws.nothing_else_in_s3, "elsewhere", with_of("objects", "etc/passwd", "aa")),
    (store_laws.nothing_else_in_s3, "a stranger's", with_of("objects", "outputs/x/0.png", "aa")),
    (store_laws.nothing_else_in_s3, "another name", with_of("objects", "outputs/done/a.sh", "aa")),
    (
        store_laws.nothing_else_in_redis, "another key",
        lambda found: replace(found, keys=found.keys | {"sag:lock"}),
    ),
    (
        store_laws.nothing_else_in_redis, "a stranger's",
        lambda found: replace(found, keys=found.keys | {Keys().task("../../etc/passwd")}),
    ),
    (store_laws.nothing_is_left, "a message", with_of("left", "sag.unacked", 1)),
    (
        store_laws.nothing_is_left, "a checkpoint",
        lambda found: replace(found, keys=found.keys | {Keys().checkpoint("done")}),
    ),
]  # fmt: skip


def test_a_sound_history_breaks_no_law() -> None:
    """Drained, overtaken, cancelled, refused and exhausted tasks are all as they should be."""
    assert invariants.check(sound()) == []


@pytest.mark.parametrize(
    ("law", "change"),
    [pytest.param(law, change, id=f"{law.__name__}: {name}") for law, name, change in WRONG],
)
def test_a_breach_is_found(
    law: Callable[..., Broken], change: Callable[[Evidence], Evidence]
) -> None:
    """What breaks a law is told under that law's name."""
    assert law.__name__ in {each.law for each in invariants.check(change(sound()))}


def test_each_law_can_be_broken() -> None:
    """No law is without an example of its breach."""
    assert {law for law, _, _ in WRONG} == set(invariants.LAWS)


def test_a_client_that_waits_for_a_lost_task_has_seen_enough() -> None:
    """Of a task without an end the client may have been told less than was written."""
    lost = with_of("replies", "done", None)(with_stream(DONE[:-1])(sound()))
    short = replace(lost, seen={**lost.seen, "done": lost.seen["done"][:4]})
    assert {each.law for each in invariants.check(short)} == {
        "none_is_lost",
    }
