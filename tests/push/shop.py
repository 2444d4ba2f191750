"""Another team's Celery application, which is told of ends; it has nothing of ours.

Run as `celery -A tests.push.shop worker`, with the broker in `SHOP_BROKER_URL`.
"""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery
from redis import Redis

#: What the settings of the worker name.
QUEUE, TASK = "shop", "shop.picture_done"
#: List of what the task was told.
TOLD = "shop-told"

app = Celery("shop", broker=os.environ.get("SHOP_BROKER_URL"), set_as_current=False)


@app.task(name=TASK)
def picture_done(event: dict[str, Any]) -> None:
    """Note the event."""
    with Redis.from_url(os.environ["SHOP_BROKER_URL"]) as redis:
        redis.rpush(TOLD, json.dumps(event))
