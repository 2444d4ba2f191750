"""What the client raises, as HTTP says it."""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse

from api_contracts import InvalidRequest, ServiceUnavailable, TaskNotFound, WaitTimeout


class Refusals:
    """Middleware: an error of the client in any view becomes its answer."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Change nothing on the way."""
        return self._get_response(request)

    def process_exception(self, _request: HttpRequest, error: Exception) -> HttpResponse | None:
        """The answer to an error of the client; None leaves another to Django."""
        detail: Any = str(error)
        match error:
            case InvalidRequest():
                status, detail = 422, [fault.model_dump() for fault in error.faults]
            case TaskNotFound():
                status = 404
            case ServiceUnavailable() | WaitTimeout():  # nothing is lost: ask again
                status = 503
            case _:
                return None
        return JsonResponse({"detail": detail}, status=status)
