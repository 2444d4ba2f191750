"""The AsyncAPI 3 document: the channels of the worker and the messages on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api_contracts import names
from api_contracts.events import TaskStatus
from api_contracts.pushes import MESSAGE_ID
from api_contracts.schemas import examples

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Version of the contract, not of the worker; incremented when a channel, schema or field is added.
CONTRACT_VERSION = "1.2.0"


def document(kinds: Iterable[str]) -> dict[str, Any]:
    """The document; payloads refer to the schemas beside it. `kinds` are the types of events."""
    events = {kind: f"event-{kind}.json" for kind in kinds}
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "sag-worker",
            "version": CONTRACT_VERSION,
            "description": (
                "Pictures by Stable Diffusion with Self-Attention Guidance: tasks go in as Celery "
                "messages in Redis, every step comes back as an event in a Redis stream."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "redis": {
                "host": "127.0.0.1:6379",
                "protocol": "redis",
                "description": "`SAG_BROKER_URL`; `SAG_EVENTS_URL` where it is another.",
            }
        },
        "channels": _channels(events),
        "operations": _operations(events),
    }


def _channels(events: dict[str, str]) -> dict[str, Any]:
    namespace = {"default": names.DEFAULT_NAMESPACE, "description": "`SAG_NAMESPACE`."}
    model = {"default": names.DEFAULT_MODEL, "description": "An alias of `SAG_MODELS`."}
    shown = [f"{{{examples.EVENTS['queued']['task_id']}}}"]
    return {
        "tasks": {
            "address": "generate.{model}",
            "title": "The task queue of a model",
            "description": (
                "A Redis list, pushed to at the left. This name is priority 0; 1 to 9 are the "
                "name, the bytes 06 16 and the digit."
            ),
            "parameters": {"model": model},
            "messages": {"task": _message("task", "message.json", examples.MESSAGE)},
        },
        "events": {
            "address": "{namespace}:{tag}:events",
            "title": "The events of a task",
            "description": (
                "A Redis stream, read by XREAD. Entry `<seq>-0` is event `seq`, its JSON is in "
                "field `event`. One of the last four types is the end."
            ),
            "parameters": {
                "namespace": namespace,
                "tag": {"description": "The task's id in braces.", "examples": shown},
            },
            "messages": {
                kind: _message(kind, file, examples.EVENTS[kind]) for kind, file in events.items()
            },
        },
        "replies": {
            "address": "{queue}",
            "title": "The queue that a request's `reply_to` names",
            "description": "A Redis list, pushed to at the left: the end of a task, as a task.",
            "parameters": {"queue": {"description": "One of `SAG_REPLY_TO`."}},
            "messages": {"reply": _message("reply", "reply.json", examples.REPLY)},
        },
        "webhooks": {
            "address": None,
            "title": "The URL that a request's `webhook` names",
            "description": "A POST of the end of a task, signed by Standard Webhooks.",
            "messages": {
                kind: _signed(kind, file) for kind, file in events.items() if is_end(kind)
            },
        },
        "control": {
            "address": "{namespace}:control",
            "title": "Cancels",
            "description": (
                "A Redis channel. A cancel is written into the task's record by `cancel.lua`; what "
                "is published here makes its worker look at once."
            ),
            "parameters": {"namespace": namespace},
            "messages": {
                "cancel": {
                    "name": "cancel",
                    "title": "A task's id",
                    "contentType": "text/plain",
                    "payload": {"type": "string"},
                }
            },
        },
    }


def _message(name: str, file: str, example: Any) -> dict[str, Any]:  # noqa: ANN401  # any JSON
    return {
        "name": name,
        "payload": {"$ref": f"./{file}"},
        "examples": [{"name": name, "payload": example}],
    }


def is_end(kind: str) -> bool:
    """Whether an event type is terminal."""
    return kind in list(TaskStatus) and TaskStatus(kind).is_terminal


def _signed(kind: str, file: str) -> dict[str, Any]:
    """The body is the event; the headers sign it."""
    about = {
        "webhook-id": MESSAGE_ID,
        "webhook-timestamp": "Unix seconds.",
        "webhook-signature": "`v1,` and base64 of HMAC-SHA256 over id, timestamp and body with "
        "points between; one for each secret, with spaces between.",
    }
    headers = {name: {"type": "string", "description": text} for name, text in about.items()}
    return _message(kind, file, examples.EVENTS[kind]) | {
        "headers": {"type": "object", "required": [*headers], "properties": headers}
    }


def _operations(events: dict[str, str]) -> dict[str, Any]:
    """The worker's operations; those of a caller are the opposite ones."""

    def of(channel: str, messages: Iterable[str], action: str, summary: str) -> dict[str, Any]:
        return {
            "action": action,
            "channel": {"$ref": f"#/channels/{channel}"},
            "summary": summary,
            "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
        }

    return {
        "takeTask": of("tasks", ["task"], "receive", "Take a task; the same id is the same task."),
        "tellEvents": of("events", events, "send", "Tell each step, and one end."),
        "sendReply": of("replies", ["reply"], "send", "Tell the end where it was asked for."),
        "postEnd": of("webhooks", filter(is_end, events), "send", "The same over HTTP."),
        "hearCancel": of("control", ["cancel"], "receive", "End a task before its next UNet call."),
    }
