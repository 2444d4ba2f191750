"""Celery's remote control: `revoke` cancels through the record, `sag_well` reports health.

Replaces Celery's `revoke`, `terminate` and `shutdown` in `celery.worker.control.Panel`, and refuses
the commands that would hold messages, or steer them to this worker or away from it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.utils.functional import maybe_list
from celery.worker import state as worker_state
from celery.worker.control import Panel

from api_contracts.errors import GenerationError
from api_contracts.names import is_task_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from api_contracts.client.records import Records

logger = logging.getLogger(__name__)

#: The command of `sag-worker health`.
WELL = "sag_well"
#: Commands that are answered with an error, and why.
REFUSED = {
    "rate_limit": "a limited message would be held while nobody renews its lease; limit where"
    " tasks are sent",
    "time_limit": "use a request's deadline_s, or SAG_STEP_TIMEOUT_S",
    "revoke_by_stamped_headers": "stamps are not served; revoke tasks by id",
    **dict.fromkeys(
        ("pool_grow", "pool_shrink", "pool_restart", "autoscale"),
        "the number of slots is SAG_SLOTS + SAG_RESERVED_SLOTS; start more workers, or restart this"
        " one",
    ),
    **dict.fromkeys(
        ("add_consumer", "cancel_consumer"),
        "a worker serves the queues of SAG_MODELS; to serve none, stop it",
    ),
}


def install(
    records: Records, state: Callable[[], dict[str, Any]], drain: Callable[[], None]
) -> None:
    """Register the commands, in place of Celery's own of the same names.

    Celery drops a revoked message before its task begins, and the record would stay open. Here the
    record is cancelled: a waiting task ends at once, a running one before its next UNet call.
    `state` returns what `sag_well` answers; `shutdown` calls `drain`, which Celery's own does not.
    """

    def revoke(_state: Any, task_id: Any, **_: Any) -> dict[str, str]:  # noqa: ANN401  # Celery's signature
        ids = [each for each in maybe_list(task_id) or [] if is_task_id(each)]
        try:
            for each in ids:
                records.cancel(each)
        except GenerationError as error:
            logger.warning("revoke command failed: %s", error)
            return {"error": str(error)}
        return {"ok": f"tasks {', '.join(ids)} are asked to end"}

    def terminate(state: Any, signal: Any, task_id: Any, **_: Any) -> dict[str, str]:  # noqa: ANN401, ARG001  # Celery's signature
        return revoke(state, task_id)

    def well(_state: Any) -> dict[str, Any]:  # noqa: ANN401  # Celery's signature
        return state()

    Panel.register(name="revoke", help="Cancel tasks.")(revoke)
    Panel.register(name="terminate", help="Cancel tasks.")(terminate)
    Panel.register(name="shutdown", help="Stop as by SIGTERM.")(_shutdown(drain))

    def hello(_state: Any, **_: Any) -> dict[str, Any]:  # noqa: ANN401  # Celery's signature
        """Nothing: Celery would take over the ids that another worker has revoked."""
        return {}

    Panel.register(name="hello", type="inspect", visible=False)(hello)
    for name, why in REFUSED.items():
        Panel.register(name=name, help="Not served.")(_refuse(name, why))
    Panel.register(name=WELL, type="inspect", help="Would it claim a task?")(well)


def _shutdown(drain: Callable[[], None]) -> Callable[..., dict[str, str]]:
    def shutdown(_state: Any, **_: Any) -> dict[str, str]:  # noqa: ANN401  # Celery's signature
        """What Celery does on SIGTERM; by `should_stop` its loop ends after this command."""
        logger.warning("shutdown command received")
        drain()
        worker_state.should_stop = 0
        return {"ok": "the process takes no more tasks and exits"}

    return shutdown


def _refuse(name: str, why: str) -> Callable[..., dict[str, str]]:
    def refuse(_state: Any, **_: Any) -> dict[str, str]:  # noqa: ANN401  # Celery's signature
        logger.warning("remote control command %s refused: %s", name, why)
        return {"error": f"{name} is not served: {why}"}

    return refuse
