"""Laws for what is stored: objects in S3, keys in Redis, records, Celery's results."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from api_contracts.events import Cancelled, Event, Failed, Succeeded
from api_contracts.names import Keys
from tests.chaos.evidence import pictures, shas
from tests.chaos.submissions import REPLY_TO

if TYPE_CHECKING:
    from tests.chaos.evidence import Evidence
    from tests.chaos.stream_laws import Broken

#: The documented keys; `id` must be a task that was submitted.
_KEYS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"sag:\{(?P<id>[^{}]+)\}:(task|events|checkpoint)",
        r"sag:(open|wishes|workers|pool|primary|pushes|dead|reconciler|scratch)",
        r"generate\.(default|remote)(\x06\x16[1-9])?",
        r"sag\.unacked(_index)?",
        r"sag\.ready\.generate\.(default|remote)",
        r"sag\.wake\.[^:]+:[^:]+:[0-9a-f]+",
        r"_kombu\.binding(_permanent)?\.generate\.(default|remote)",
        r"_kombu\.binding_deadlines",
        r"_kombu\.binding(_permanent)?\.celery\.pidbox",
        r"[^:]+\.reply\.celery\.pidbox(\x06\x16[1-9])?",
        r"celery-task-meta-(?P<id>.+)",
        REPLY_TO["queue"],
    )
)
#: Celery's states for the ends.
_STATES = {
    "succeeded": "SUCCESS",
    "failed": "FAILURE",
    "expired": "FAILURE",
    "cancelled": "REVOKED",
}


def pictures_are_the_reference(evidence: Evidence) -> Broken:
    """The stored pictures are, byte for byte, those of the result and of the reference."""
    for task_id, submission in evidence.submissions.items():
        if not isinstance(end := evidence.end(task_id), Succeeded):
            continue
        stored = pictures(evidence.objects, f"{evidence.prefix}/{task_id}/")
        if stored != shas(end):
            yield task_id, "the stored pictures are not those of the result"
        if stored != evidence.reference[submission.request]:
            yield (
                task_id,
                f"the stored pictures are not the reference of request {submission.request}",
            )


def manifests_agree(evidence: Evidence) -> Broken:
    """A manifest is stored with the pictures and equals the result.

    Except for the timings and the batch, which may be those of another attempt.
    """
    for task_id in evidence.submissions:
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
    """The record's status and outcome are those of the stream's end."""
    for task_id in evidence.submissions:
        if (end := evidence.end(task_id)) is None:
            continue
        record = evidence.records.get(task_id)
        if record is None or record.status != end.type or not _same(record.outcome, end):
            yield task_id, f"{end.type} in the stream, {record.status if record else 'no record'}"


def celery_agrees(evidence: Evidence) -> Broken:
    """Celery's state and result are those of the stream's end.

    They may be missing for a task that was cancelled while it waited and whose message is gone.
    """
    for task_id in evidence.submissions:
        if (end := evidence.end(task_id)) is None:
            continue
        answer = evidence.celery_results.get(task_id)
        if answer is None:
            if not (isinstance(end, Cancelled) and end.worker is None):
                yield task_id, f"{end.type}, without a Celery result"
        elif answer.status != _STATES[end.type]:
            yield task_id, f"{end.type}, and Celery says {answer.status}"
        elif isinstance(end, Succeeded) and not _same(answer.result, end):
            yield task_id, "Celery's result differs"
        elif isinstance(end, Failed) and answer.result["exc_message"][0] != end.error.code:
            yield task_id, f"{end.error.code}, and Celery says {answer.result['exc_message'][0]}"


def _same(outcome: object, end: Event) -> bool:
    """Whether an outcome as JSON equals the event's."""
    whole = end.model_dump(mode="json")
    match end:
        case Succeeded():
            return bool(outcome == whole["result"])
        case Failed():
            return bool(outcome == whole["error"])
        case _:
            # The record also has whether a deadline was the message's own.
            return isinstance(outcome, dict) and outcome.get("step") == whole["step"]


def ends_are_pushed(evidence: Evidence) -> Broken:
    """The end of a task with `reply_to` is pushed at least once; no other event is, nor task."""
    for task_id, submission in evidence.submissions.items():
        end, pushed = evidence.end(task_id), evidence.replies.get(task_id, ())
        if submission.replies and end is not None and not pushed:
            yield task_id, f"{end.type} was not pushed"
        if pushed and not submission.replies:
            yield task_id, "pushed without a reply_to"
        yield from ((task_id, f"{each.type} was pushed") for each in pushed if each != end)


def schemas_hold(evidence: Evidence) -> Broken:
    """Events, results, errors and requests match the published schemas."""
    yield from evidence.unpublished


def objects_are_known(evidence: Evidence) -> Broken:
    """Every object is a picture or the manifest of a submitted task."""
    name = re.compile(rf"{re.escape(evidence.prefix)}/([^/]+)/(\d+\.png|manifest\.json)")
    for key in evidence.objects:
        found = name.fullmatch(key)
        if found is None or found[1] not in evidence.submissions:
            yield key, "of no submitted task"


def keys_are_known(evidence: Evidence) -> Broken:
    """Every key is documented, and its task was submitted."""
    for key in sorted(evidence.keys):
        found = next((found for each in _KEYS if (found := each.fullmatch(key))), None)
        if found is None:
            yield key, "not a documented key"
        elif (task_id := found.groupdict().get("id")) and task_id not in evidence.submissions:
            yield key, "of no submitted task"


def nothing_is_left(evidence: Evidence) -> Broken:
    """No message, no open task and no checkpoint is left."""
    for key, entries in evidence.left.items():
        if entries:
            yield key, f"{entries} left"
    for task_id in evidence.submissions:
        if (key := Keys().checkpoint(task_id)) in evidence.keys:
            yield key, "a checkpoint is left"
