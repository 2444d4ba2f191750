"""The evidence of a run in which every law holds, and changes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from api_contracts.events import EVENT, Event
from api_contracts.names import Keys
from tests.chaos.evidence import CeleryResult, Evidence, Record
from tests.chaos.recorded_events import StreamEntry
from tests.chaos.submissions import Expected, Sender, Submission
from tests.chaos.worker_logs import Claim, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    "truncated": [], "versions": {"torch": "2"}, "dtype": "float32",
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
#: FaultKind, attempt, worker of each event, by task.
CORRECT: dict[str, list[tuple[str, int, str | None]]] = {
    # Drained once, stopped once: the first attempt starts twice, the second has another owner.
    "done": [
        ("queued", 0, None), ("started", 1, "a"), ("progress", 1, "a"), ("requeued", 1, "a"),
        ("started", 1, "b"), ("progress", 1, "b"), ("started", 2, "c"), ("progress", 2, "c"),
        ("uploading", 2, "c"), ("succeeded", 2, "c"),
    ],
    # Drained, then cancelled while it waited.
    "left": [
        ("queued", 0, None), ("started", 1, "a"), ("requeued", 1, "a"), ("cancelled", 0, None),
    ],
    # Ended by the claim of a worker that did not start it.
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


def correct() -> Evidence:
    """Four tasks that ended correctly."""
    submissions = {
        "done": Submission("done", 0, replies=True),
        "left": Submission("left", 0),
        "poison": Submission("poison", 0, Sender.CELERY, Expected.EXHAUSTED),
        "broken": Submission("broken", 0, Sender.RAW, Expected.REFUSED),
    }
    streams = {task_id: events(task_id, rows) for task_id, rows in CORRECT.items()}
    manifest = {k: v for k, v in RESULT.items() if k not in ("timings", "batch")}
    image = {k: v for k, v in RESULT["images"][0].items() if k != "url"}  # type: ignore[index]  # the dict above
    keys = {"sag:open", "sag:dead", "sag.unacked", "_kombu.binding.generate.default"}
    return Evidence(
        submissions=submissions,
        cancels=frozenset({"left"}),
        streams={task_id: entries_of(stream) for task_id, stream in streams.items()},
        client_events={task_id: tuple(stream) for task_id, stream in streams.items()},
        client_errors=(),
        records={
            "done": Record("succeeded", RESULT),
            "left": Record("cancelled", {"step": 0}),
            "poison": Record("failed", EXHAUSTED),
            "broken": Record("failed", REFUSED),
        },
        celery_results={
            "done": CeleryResult("SUCCESS", RESULT),
            "poison": CeleryResult("FAILURE", {"exc_message": ["attempts_exhausted"]}),
            "broken": CeleryResult("FAILURE", {"exc_message": ["invalid_request"]}),
        },
        claims=(
            Claim("done", 1, 1, WorkerProcess("machine-0-1", 5), 0.0),
            Claim("done", 1, 2, WorkerProcess("machine-1-1", 5), 0.0),
        ),
        reference={0: ("aa",)},
        objects={"outputs/done/0.png": "aa", "outputs/done/manifest.json": "bb"},
        manifests={"outputs/done/manifest.json": manifest | {"task_id": "done", "images": [image]}},
        keys=frozenset(keys | {Keys().task("done"), "celery-task-meta-done"}),
        replies={"done": (streams["done"][-1],) * 2},
        left={"sag.unacked": 0},
    )


def entries_of(stream: Sequence[Event]) -> tuple[StreamEntry, ...]:
    return tuple(StreamEntry(number, event) for number, event in enumerate(stream, 1))


def with_stream(rows: Sequence[tuple[str, int, str | None]]) -> Callable[[Evidence], Evidence]:
    """Task `done` with other events, in the stream and at its client."""

    def change(evidence: Evidence) -> Evidence:
        stream = events("done", rows)
        streams = {**evidence.streams, "done": entries_of(stream)}
        return replace(
            evidence,
            streams=streams,
            client_events={**evidence.client_events, "done": tuple(stream)},
        )

    return change


def renumbered(evidence: Evidence, numbers: Sequence[int], *, entries: bool) -> Evidence:
    stream = [
        StreamEntry(
            number if entries else seq,
            event.model_copy(update={"seq": number}),
        )
        for seq, (number, event) in enumerate(
            zip(numbers, evidence.events_of("done"), strict=True), 1
        )
    ]
    return replace(evidence, streams={**evidence.streams, "done": tuple(stream)})


def with_of(name: str, task_id: Any, value: object) -> Callable[[Evidence], Evidence]:
    """One entry of a mapping changed, or removed when None."""

    def change(evidence: Evidence) -> Evidence:
        entries: Any = {**getattr(evidence, name), task_id: value}
        if value is None:
            del entries[task_id]
        return replace(evidence, **{name: entries})

    return change


def with_end(kind: str, expects: Expected = Expected.PICTURES) -> Callable[[Evidence], Evidence]:
    def change(evidence: Evidence) -> Evidence:
        changed = with_stream([*CORRECT["done"][:-1], (kind, 2, "c")])(evidence)
        submission = replace(evidence.submissions["done"], expects=expects)
        return replace(changed, submissions={**evidence.submissions, "done": submission})

    return change
