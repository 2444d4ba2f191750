"""The requests that Celery's consumer of this process holds, and which priorities it may take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery.worker import state

from api_contracts.names import DEFAULT_PRIORITY, PRIORITIES

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

    Tasks of the default priority and below may occupy `slots` slots, urgent ones any.
    """
    common = sum(each.delivery_info["priority"] >= DEFAULT_PRIORITY for each in held_requests())
    return PRIORITIES[-1] if common < slots else DEFAULT_PRIORITY - 1
