"""The Celery message of a task, protocol 2, as it lies in the Redis list of its queue."""

from __future__ import annotations

import json

from api_contracts.names import TASK_NAME


def task_message(task_id: str, request: str, queue: str, priority: int) -> str:
    """The message; `request` is JSON.

    The id comes first: `message_ids.lua` reads it without parsing the rest. The body is not in
    base64, which any reader of kombu's messages takes as well and which is a third shorter.
    """
    return json.dumps(
        {
            "headers": {
                "id": task_id,
                "task": TASK_NAME,
                "lang": "py",
                "root_id": task_id,
                "parent_id": None,
                "group": None,
                "argsrepr": "()",
                "kwargsrepr": "<request>",  # Celery's events and `inspect` show no prompt
                "eta": None,
                "expires": None,
                "retries": 0,
                "timelimit": [None, None],
            },
            "properties": {
                "correlation_id": task_id,
                "delivery_tag": task_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": priority,
            },
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "body": f'[[], {{"request": {request}}}, {{}}]',
        },
        ensure_ascii=False,
    )
