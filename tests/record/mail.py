"""Messages as kombu delivers them, and how Celery reads them."""

from __future__ import annotations

import json
from typing import Any

from celery import Celery
from celery.worker.request import Request
from kombu.message import Message

from api_contracts import names
from worker.broker.validate_message import UNREADABLE

HEADERS: dict[str, Any] = {"task": names.TASK_NAME, "id": "t"}
BODY = json.dumps([[], {"request": {"prompt": "x"}}, {"callbacks": None}])

app = Celery("judge", set_as_current=False)


@app.task(name=names.TASK_NAME, shared=False)
def judge() -> None:
    """Stands for the task that Celery looks up."""


def message(
    body: object = BODY,
    headers: object = HEADERS,
    content_type: object = "application/json",
    content_encoding: object = "utf-8",
) -> Message:
    """A message with any values."""
    made = Message(
        body=body,
        delivery_tag="d",
        content_type=content_type,
        content_encoding=content_encoding,
        headers=dict(headers) if isinstance(headers, dict) else None,
    )
    made.headers = headers
    return made


def celery_takes(made: Message) -> Any:
    """Celery's request for a message; raises when Celery can't handle it."""
    return Request(made, app=app, task=app.tasks[names.TASK_NAME])


def fault_in(made: Message) -> str | None:
    """The fault that validation found in a message, read through Celery."""
    kwargs = celery_takes(made).kwargs
    return str(kwargs[UNREADABLE]) if UNREADABLE in kwargs else None
