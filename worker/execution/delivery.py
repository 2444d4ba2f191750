"""One message of a task: what came in it, and what it asks for."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from api_contracts.errors import InvalidRequest
from api_contracts.parse import parse_request
from api_contracts.pushes import PushKind
from worker.errors import BadRequestError, TaskFailedError
from worker.execution.resolved_request import ResolvedRequest

if TYPE_CHECKING:
    from api_contracts.errors import FieldError, TaskError
    from worker.config.settings import Settings

logger = logging.getLogger(__name__)

#: Longest request that is kept in a record whose request is refused, in characters.
KEPT_CHARS = 4_000


@dataclass(frozen=True)
class Delivery:
    """What came in a message."""

    task_id: str
    request: Any
    #: Where it lay.
    queue: str = ""
    #: Unix time after which it is not to be begun: Celery's `expires`.
    expires_at_s: float | None = None
    #: What is wrong with the message around the request.
    fault: FieldError | None = None

    def checked(self, settings: Settings) -> ResolvedRequest | TaskError:
        """The order in it, or why there is none."""
        if self.fault is not None:
            return BadRequestError(self.fault).error
        try:
            return ResolvedRequest.of(parse_request(self.request), self.task_id, settings)
        except InvalidRequest as error:
            return BadRequestError(*error.faults).error
        except TaskFailedError as fault:
            return fault.error
        except Exception as error:  # before the claim: raised, it would come back for ever
            logger.exception("task %s: its request can't be checked, which is ours", self.task_id)
            return TaskFailedError(f"the request can't be checked: {type(error).__name__}").error

    @property
    def kept(self) -> str:
        """What a record keeps of the request when it is refused."""
        request = self.request
        try:
            text = json.dumps(request)
            if isinstance(request, dict) and (len(text) > KEPT_CHARS or not _is_text(request)):
                # Who is to be told is kept whole, and so that Redis's own scripts can read it.
                told = json.dumps(
                    {each.value: request[each] for each in PushKind if each in request}
                )
                text = told if len(told) <= KEPT_CHARS else text
            return text[:KEPT_CHARS]
        except (TypeError, ValueError, RecursionError):
            return repr(type(request))


def _is_text(request: object) -> bool:
    """Whether it has no half of a character, which JSON may write and not every reader takes."""
    try:
        json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
