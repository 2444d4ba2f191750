"""Pictures straight from the SAG worker, and articles whose picture the project's worker orders."""

import json
from typing import Any

from celery.result import AsyncResult
from celery.states import READY_STATES
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse

from api_contracts import FieldError, GenerationCancelled, GenerationFailed, InvalidRequest

from .sag import client
from .tasks import illustrate


def submit(request: HttpRequest) -> HttpResponse:
    """Submit a request, whose fields are the SAG worker's; gives the task's id."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    return JsonResponse({"id": client().submit(order_in(request)).task_id}, status=202)


def look(_request: HttpRequest, task_id: str) -> HttpResponse:
    """Where a task is and, at its end, what came of it."""
    task = client().handle(task_id)
    status = task.status()
    answer: dict[str, Any] = {"id": task_id, "status": status}
    if status.is_terminal:
        try:
            answer["result"] = task.result(timeout=10).model_dump()
        except GenerationFailed as error:
            answer["error"] = error.error.model_dump()
        except GenerationCancelled:
            pass  # the status says it
    return JsonResponse(answer)


def publish(request: HttpRequest) -> HttpResponse:
    """Let the project's own worker submit such a request and wait for it; gives the job's id."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    return JsonResponse({"job": illustrate.delay(order_in(request)).id}, status=202)


def article(_request: HttpRequest, job_id: str) -> HttpResponse:
    """Where the job is and, at its end, the picture's key."""
    job = AsyncResult(job_id)
    state = job.state  # asked once: it may end between two questions
    if state not in READY_STATES:
        return JsonResponse({"job": job_id, "state": state})
    what = {"key": job.result} if job.successful() else {"error": str(job.result)}
    return JsonResponse({"job": job_id, "state": state, **what})


def order_in(request: HttpRequest) -> Any:  # noqa: ANN401  # any JSON; the client looks at it
    """What the body holds."""
    try:
        return json.loads(request.body)
    except ValueError as error:
        fault = FieldError(where="request", what=f"is not JSON: {error}", limit="JSON")
        raise InvalidRequest([fault]) from error
