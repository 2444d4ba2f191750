"""Changes of a correct run, by the law that each of them breaks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from api_contracts.names import Keys
from tests.chaos import store_laws, stream_laws
from tests.chaos.correct_run import (
    CORRECT,
    RESULT,
    events,
    renumbered,
    with_end,
    with_of,
    with_stream,
)
from tests.chaos.evidence import CeleryResult, Evidence, Record
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
