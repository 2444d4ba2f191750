"""What must hold for what is left: objects in S3, keys in Redis, the record, Celery's result."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from api_contracts.events import Cancelled, Event, Failed, Succeeded
from api_contracts.names import Keys
from tests.chaos.evidence import pictures, shas
from tests.chaos.orders import REPLY_TO

if TYPE_CHECKING:
    from tests.chaos.evidence import Evidence
    from tests.chaos.stream_laws import Broken

#: The keys of docs/architecture.md; what stands in the place of an id must be a task that was
#: submitted.
_KEYS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"sag:\{(?P<id>[^{}]+)\}:(task|events|checkpoint)",
        r"sag:(open|wishes|pushes|dead|reconciler)",
        r"generate\.default(\x06\x16[1-9])?",
        r"sag\.unacked(_index)?",
        r"_kombu\.binding(_permanent)?\.generate\.default",
        r"_kombu\.binding_deadlines",
        r"_kombu\.binding(_permanent)?\.celery\.pidbox",
        r"[^:]+\.reply\.celery\.pidbox(\x06\x16[1-9])?",
        r"celery-task-meta-(?P<id>.+)",
        REPLY_TO["queue"],
    )
)
#: Celery's words for the ends.
_STATES = {
    "succeeded": "SUCCESS",
    "failed": "FAILURE",
    "expired": "FAILURE",
    "cancelled": "REVOKED",
}


def pictures_are_those_of_an_undisturbed_run(evidence: Evidence) -> Broken:
    """What is stored is, byte for byte, what the result says and what is stored undisturbed."""
    for task_id, order in evidence.orders.items():
        if not isinstance(end := evidence.end(task_id), Succeeded):
            continue
        stored = pictures(evidence.objects, f"{evidence.prefix}/{task_id}/")
        if stored != shas(end):
            yield task_id, "stored are others than the result says"
        if stored != evidence.reference[order.request]:
            yield task_id, f"request {order.request} gives others when nothing disturbs it"


def manifests_agree(evidence: Evidence) -> Broken:
    """A manifest lies beside the pictures and says what the result says.

    But for the times and the company, which a second attempt that was overtaken may have had
    otherwise.
    """
    for task_id in evidence.orders:
        if not isinstance(end := evidence.end(task_id), Succeeded):
            continue
        manifest = evidence.manifests.get(end.result.manifest_key)
        wanted = end.result.model_dump(mode="json") | {"task_id": task_id}
        for image in wanted["images"]:
            del image["url"]
        for name in ("timings", "batch"):
            del wanted[name]
        if manifest is None:
            yield task_id, "no manifest"
        elif wrong := [name for name in wanted if manifest.get(name) != wanted[name]]:
            yield task_id, f"the manifest differs in {', '.join(wrong)}"


def record_agrees(evidence: Evidence) -> Broken:
    """The record says what the stream says."""
    for task_id in evidence.orders:
        if (end := evidence.end(task_id)) is None:
            continue
        record = evidence.records.get(task_id)
        if record is None or record.status != end.type or not _same(record.outcome, end):
            yield task_id, f"{end.type} in the stream, {record.status if record else 'no record'}"


def celery_agrees(evidence: Evidence) -> Broken:
    """Celery's result is that of the stream.

    It may be missing where a task was cancelled while it waited: then no message may be left to
    answer.
    """
    for task_id in evidence.orders:
        if (end := evidence.end(task_id)) is None:
            continue
        answer = evidence.answers.get(task_id)
        if answer is None:
            if not (isinstance(end, Cancelled) and end.worker is None):
                yield task_id, f"{end.type}, and Celery knows nothing"
        elif answer.status != _STATES[end.type]:
            yield task_id, f"{end.type}, and Celery says {answer.status}"
        elif isinstance(end, Succeeded) and not _same(answer.result, end):
            yield task_id, "Celery has another result"
        elif isinstance(end, Failed) and answer.result["exc_message"][0] != end.error.code:
            yield task_id, f"{end.error.code}, and Celery says {answer.result['exc_message'][0]}"


def _same(outcome: object, end: Event) -> bool:
    """Whether an outcome as JSON is that of the event."""
    whole = end.model_dump(mode="json")
    match end:
        case Succeeded():
            return bool(outcome == whole["result"])
        case Failed():
            return bool(outcome == whole["error"])
        case _:
            return outcome == {"step": whole["step"]}


def ends_are_pushed(evidence: Evidence) -> Broken:
    """To whom the request names, at least once, and nothing but the end; to nobody else's."""
    for task_id, order in evidence.orders.items():
        end, pushed = evidence.end(task_id), evidence.replies.get(task_id, ())
        if order.replies and end is not None and not pushed:
            yield task_id, f"{end.type}, and nobody was told"
        if pushed and not order.replies:
            yield task_id, "told to whom nobody named"
        yield from ((task_id, f"told of {each.type}") for each in pushed if each != end)


def all_is_as_published(evidence: Evidence) -> Broken:
    """Events, results, errors and requests are what the schemas say."""
    yield from evidence.unpublished


def nothing_else_in_s3(evidence: Evidence) -> Broken:
    """Every object is a picture or the manifest of a task that was submitted."""
    name = re.compile(rf"{re.escape(evidence.prefix)}/([^/]+)/(\d+\.png|manifest\.json)")
    for key in evidence.objects:
        found = name.fullmatch(key)
        if found is None or found[1] not in evidence.orders:
            yield key, "nobody ordered it"


def nothing_else_in_redis(evidence: Evidence) -> Broken:
    """Every key is documented, and of a task that was submitted."""
    for key in sorted(evidence.keys):
        found = next((found for each in _KEYS if (found := each.fullmatch(key))), None)
        if found is None:
            yield key, "no such key is documented"
        elif (task_id := found.groupdict().get("id")) and task_id not in evidence.orders:
            yield key, "nobody submitted this task"


def nothing_is_left(evidence: Evidence) -> Broken:
    """No message waits, none is held, no task is open, no checkpoint is kept."""
    for key, entries in evidence.left.items():
        if entries:
            yield key, f"{entries} left"
    for task_id in evidence.orders:
        if (key := Keys().checkpoint(task_id)) in evidence.keys:
            yield key, "a checkpoint is left"
