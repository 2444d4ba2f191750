"""Sends terminal events to other Celery applications, as tasks with one argument, `event`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kombu import Queue
from kombu.exceptions import KombuError, OperationalError
from kombu.pools import producers
from redis.exceptions import RedisError

from api_contracts.redis_io.celery_app import celery_app, connection_for_write
from api_contracts.redis_io.connection import CONNECT_S
from worker.errors import PushError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from api_contracts.request_types import ReplyTo
    from worker.config.push_targets import ReplyTarget


class CeleryReplies:
    """Sends to the queues that the settings allow. Thread-safe; connects on first use."""

    def __init__(self, targets: Sequence[ReplyTarget], broker_url: str) -> None:
        """`broker_url` is for targets that have none of their own."""
        self._urls = {
            each.address: each.broker_url.get_secret_value() if each.broker_url else broker_url
            for each in targets
        }
        # Unlike the workers' own queues these have Celery's default priorities and names.
        options = {"socket_timeout": 10, "socket_connect_timeout": CONNECT_S}
        self._apps = {
            url: celery_app("sag-reply", url, broker_transport_options=options)
            for url in self._urls.values()
        }

    def send(self, to: ReplyTo, message_id: str, event: bytes) -> None:
        """Send the event; raises `PushError` unless it is in the queue."""
        if (url := self._urls.get(to)) is None:
            raise PushError("it is not among SAG_REPLY_TO of this worker", final=True)
        app = self._apps[url]
        try:
            with producers[connection_for_write(app)].acquire(block=True) as producer:
                app.send_task(
                    to.task,
                    kwargs={"event": json.loads(event)},
                    task_id=message_id,
                    queue=Queue(to.queue),
                    declare=[],
                    producer=producer,
                    retry=False,
                    ignore_result=True,
                    kwargsrepr="<event>",
                )
        except (KombuError, OperationalError, RedisError, OSError) as error:
            raise PushError(f"not sent: {error!r}"[:300]) from error

    def close(self) -> None:
        """Close the connections."""
        for app in self._apps.values():
            app.close()
