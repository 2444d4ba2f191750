"""A backend that gives its callers pictures: submit, look, follow, cancel.

SAG_BROKER_URL=redis://127.0.0.1:6379/0 uvicorn pictures:app
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api_contracts import (
    AsyncGenerationClient,
    AsyncTaskHandle,
    GenerationCancelled,
    GenerationError,
    GenerationFailed,
    InvalidRequest,
    ServiceUnavailable,
    TaskNotFound,
    WaitTimeout,
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client for the whole process, in its event loop. It connects at its first question."""
    url = os.environ.get("SAG_BROKER_URL", "redis://127.0.0.1:6379/0")
    namespace = os.environ.get("SAG_NAMESPACE", "sag")
    async with AsyncGenerationClient(url, namespace=namespace) as app.state.client:
        yield


app = FastAPI(title="Pictures", lifespan=lifespan)


@app.exception_handler(GenerationError)
async def refuse(_: Request, error: GenerationError) -> JSONResponse:
    """What the client raises, as HTTP says it."""
    detail: Any = str(error)
    match error:
        case InvalidRequest():
            status, detail = 422, [fault.model_dump() for fault in error.faults]
        case TaskNotFound():
            status = 404
        case ServiceUnavailable():  # nothing is lost: send it again, with the same key
            status = 503
        case WaitTimeout():  # the task goes on
            status = 504
        case _:
            status = 500
    return JSONResponse({"detail": detail}, status)


async def known(task_id: str, request: Request) -> AsyncTaskHandle:
    """The task of the path; 404 before anything else is done with it."""
    task: AsyncTaskHandle = request.app.state.client.handle(task_id)
    await task.status()
    return task


Task = Annotated[AsyncTaskHandle, Depends(known)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", pattern="^[A-Za-z0-9._-]{1,100}$")]


@app.post("/pictures", status_code=202)
async def submit(
    order: dict[str, Any], request: Request, response: Response, key: Key = None
) -> dict[str, str]:
    """Submit a request, whose fields are the worker's; the same key again is the same task."""
    client: AsyncGenerationClient = request.app.state.client
    task = await client.submit(order, task_id=f"key-{key}" if key else None)
    response.headers["Location"] = f"/pictures/{task.task_id}"
    return {"id": task.task_id}


@app.get("/pictures/{task_id}")
async def look(task: Task, wait_s: Annotated[float, Query(ge=0, le=60)] = 0) -> dict[str, Any]:
    """Where the task is and, at its end, what came of it; waits for that if asked to."""
    status = await task.status()
    if not status.is_terminal and not wait_s:
        return {"id": task.task_id, "status": status}
    try:
        result = await task.result(timeout=wait_s or 10)
    except GenerationFailed as error:
        ended: dict[str, Any] = {"error": error.error}
    except GenerationCancelled:
        ended = {}
    else:
        ended = {"result": result}
    return {"id": task.task_id, "status": await task.status(), **ended}


@app.get("/pictures/{task_id}/events", response_class=EventSourceResponse)
async def follow(
    task: Task, last_event_id: Annotated[int, Header(ge=0)] = 0
) -> AsyncIterator[ServerSentEvent]:
    """Every event after the last that the caller had, past ones first, until the end."""
    async for event in task.events(after=last_event_id):  # or until the caller goes
        yield ServerSentEvent(data=event, event=event.type, id=str(event.seq))


@app.delete("/pictures/{task_id}", status_code=202)
async def cancel(task: Task) -> dict[str, Any]:
    """Ask for the task to end; gives the status that it had."""
    return {"id": task.task_id, "was": await task.cancel()}
