"""Releases the tasks and messages of a dead process at once, before their leases expire."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from api_contracts.redis_io.connection import connect_impatiently
from api_contracts.redis_io.scripts import load
from worker import metrics
from worker.broker.held_messages import HeldMessages
from worker.recovery.pool_entry import leave_pool

if TYPE_CHECKING:
    from worker.config.settings import Settings

logger = logging.getLogger(__name__)

#: Longest wait for an answer of Redis, in seconds.
TIMEOUT_S = 2.0


def release_owner(settings: Settings, owner: str) -> int:
    """Requeue the messages of process `owner`, which is dead, and end its leases.

    Returns the number of messages; raises redis-py's exceptions.
    """
    broker = connect_impatiently(settings.broker_url.get_secret_value(), TIMEOUT_S)
    events = connect_impatiently(settings.events_redis_url.get_secret_value(), TIMEOUT_S)
    with broker, events:
        messages, end_lease = HeldMessages(broker), load(events, "worker.record", "end_lease")
        number = 0
        for tag in messages.held_by(owner):
            held = messages.held(tag)
            # The lease first: otherwise the next claim of the message is answered `held`.
            if held is not None and held.task_id is not None:
                end_lease(task=settings.keys.task(held.task_id), owner=owner)
            number += messages.requeue(tag)
        leave_pool(events, settings.keys, [owner])
        messages.retire(owner, settings.queues)
    if number:
        metrics.RECOVERED.labels("death").inc(number)
        logger.warning("%d orphaned messages of %s requeued", number, owner)
    return number
