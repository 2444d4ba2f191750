"""Another team's Celery application that receives terminal events, without this package.

Run as `celery -A tests.push.shop worker`, with the broker in `SHOP_BROKER_URL`.
"""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery
from redis import Redis

#: As in the settings of the worker.
QUEUE, TASK = "shop", "shop.picture_done"
#: The Redis list of received events.
RECEIVED = "shop-received"

app = Celery("shop", broker=os.environ.get("SHOP_BROKER_URL"), set_as_current=False)


@app.task(name=TASK)
def picture_done(event: dict[str, Any]) -> None:
    """Store the event."""
    with Redis.from_url(os.environ["SHOP_BROKER_URL"]) as redis:
        redis.rpush(RECEIVED, json.dumps(event))
