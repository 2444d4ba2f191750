"""What a process that is known to be dead held, given back at once instead of a lease later."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from api_contracts.redis_io.connection import connect_impatiently
from api_contracts.redis_io.scripts import load
from worker import metrics
from worker.broker.held_messages import HeldMessages

if TYPE_CHECKING:
    from worker.config.settings import Settings

logger = logging.getLogger(__name__)

#: Longest wait for an answer, in seconds: whoever calls has other processes to look after.
ANSWER_S = 2.0


def give_back(settings: Settings, owner: str, reason: str = "death") -> int:
    """Put the messages of process `owner` back and end its leases; gives how many there were.

    The owner must be dead, or about to end; `reason` says which to the metrics. Raises what
    redis-py raises.
    """
    broker = connect_impatiently(settings.broker_url.get_secret_value(), ANSWER_S)
    events = connect_impatiently(settings.events_redis_url.get_secret_value(), ANSWER_S)
    with broker, events:
        messages, end_lease = HeldMessages(broker), load(events, "worker.record", "end_lease")
        number = 0
        for tag in messages.held_by(owner):
            held = messages.held(tag)
            # First the lease: a message that is claimed before it is told that the task is held.
            if held is not None and held.task_id is not None:
                end_lease(task=settings.keys.task(held.task_id), owner=owner)
            number += messages.put_back(tag)
    if number:
        metrics.RECOVERED.labels(reason).inc(number)
        logger.warning("%d messages of %s put back (%s)", number, owner, reason)
    return number
