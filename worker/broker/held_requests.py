"""The requests that Celery's consumer of this process holds, and which priorities it may take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery.worker import state

from api_contracts.names import PRIORITIES, URGENT_PRIORITY

if TYPE_CHECKING:
    from celery.worker.request import Request


def held_requests() -> list[Request]:
    """All requests that wait for a thread or run; one is here before the next poll for messages."""
    while True:
        try:
            return list(state.reserved_requests)
        except RuntimeError:  # another thread changed the set during iteration
            continue


def lowest_priority(slots: int) -> int:
    """The last priority whose messages may be taken now.

    Tasks that are not urgent may occupy `slots` slots, urgent ones any. The list that a message
    was in decides: it is known before the message is taken.
    """
    lists = [each.message.delivery_info["list_priority"] for each in held_requests()]
    common = sum(each > URGENT_PRIORITY for each in lists)
    return PRIORITIES[-1] if common < slots else URGENT_PRIORITY
