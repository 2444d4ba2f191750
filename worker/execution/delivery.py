"""A delivery: what one message says, and what the record stores of a request that is refused."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from api_contracts.errors import InvalidRequest
from api_contracts.names import DEFAULT_PRIORITY
from api_contracts.parse import parse_request
from api_contracts.pushes import PushKind
from api_contracts.request_types import is_traceparent
from worker.errors import BadRequestError, TaskFailedError
from worker.execution.resolved_request import ResolvedRequest

if TYPE_CHECKING:
    from api_contracts.errors import FieldError, TaskError
    from worker.config.settings import Settings

logger = logging.getLogger(__name__)

#: Longest JSON of a refused request that its record stores, in characters.
MAX_REFUSED_CHARS = 4_000


@dataclass(frozen=True)
class Delivery:
    """The content of one message; its request is not yet validated."""

    task_id: str
    request: Any
    #: The queue that the message came from.
    queue: str = ""
    #: Of the message, whatever the request says.
    priority: int = DEFAULT_PRIORITY
    #: Unix time after which the task must not start: Celery's `expires`.
    expires_at_s: float | None = None
    #: What is wrong with the message, apart from its request.
    fault: FieldError | None = None
    #: `traceparent` of the message's headers, not yet validated.
    header_traceparent: str | None = None

    @property
    def traceparent(self) -> str:
        """The caller's span: the request's `traceparent`, else the header's; '' without either.

        A header that is malformed is ignored, as W3C asks; a field that is refuses the request.
        """
        field = self.request.get("traceparent") if isinstance(self.request, dict) else None
        given = (field, self.header_traceparent)
        return next(filter(is_traceparent, given), None) or ""

    def resolve(self, settings: Settings) -> ResolvedRequest | TaskError:
        """The resolved request, or the error with which the task fails."""
        if self.fault is not None:
            return BadRequestError(self.fault).error
        try:
            request = parse_request(self.request)
            if request.traceparent is None and self.traceparent:
                # Of the message alone, it would be lost where the reconciler sends another one.
                request = request.model_copy(update={"traceparent": self.traceparent})
            return ResolvedRequest.of(request, self.task_id, settings, self.priority)
        except InvalidRequest as error:
            return BadRequestError(*error.faults).error
        except TaskFailedError as error:
            return error.error
        except Exception as error:  # raised before the claim, its message would return endlessly
            logger.exception(
                "task %s fails: its request can't be checked because of a bug", self.task_id
            )
            return TaskFailedError(f"the request can't be checked: {type(error).__name__}").error

    @property
    def refused_json(self) -> str:
        """What the record of a refused task stores of its request.

        A request that is too long, or that Redis's JSON parser would refuse, is reduced to the
        fields that say where the final event is pushed, and the caller's span.
        """
        request = self.request
        if isinstance(request, dict) and request.get("traceparent") is None and self.traceparent:
            request = request | {"traceparent": self.traceparent}
        try:
            text = json.dumps(request)
            if isinstance(request, dict) and not _fits_record(text, request):
                kept = {kind.value for kind in PushKind} | {"traceparent"}
                given = {name: value for name, value in request.items() if name in kept}
                if len(pushes := json.dumps(given)) <= MAX_REFUSED_CHARS:
                    return pushes
        except (TypeError, RecursionError):  # a type that kombu decodes; nested too deep
            return repr(type(self.request))
        return text[:MAX_REFUSED_CHARS]


def _fits_record(text: str, request: dict[str, Any]) -> bool:
    """Whether a request is short enough and has no lone surrogate, which cjson refuses."""
    if len(text) > MAX_REFUSED_CHARS:
        return False
    try:
        json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
