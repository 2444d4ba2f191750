"""The studio's backend: passes requests to the workers, and their events to the browser.

It knows `api_contracts` alone, as any other backend.
"""
# the ids in the paths are read by `known`

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

from fastapi import Body, Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse
from fastapi.staticfiles import StaticFiles

from api_contracts import (
    AsyncGenerationClient,
    AsyncTaskHandle,
    FieldError,
    InvalidRequest,
    ServiceUnavailable,
    TaskNotFound,
    TaskStatus,
)
from examples.studio.input_bucket import BucketAway, BucketRefuses, InputBucket
from examples.studio.inputs import opened_bucket, router
from examples.studio.models import Model, as_list, from_environment
from examples.studio.stream import lines

#: Tasks of one call.
MOST_TASKS = 8
#: Seconds for Redis to take them: less than the page waits for an answer.
SUBMIT_S = 4.0

#: Statuses by task id.
Statuses = dict[str, TaskStatus | None]


class State(TypedDict):
    """What `lifespan` makes, and requests find in their `state`."""

    client: AsyncGenerationClient
    bucket: InputBucket | None
    models: dict[str, Model]


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
    """One client and one bucket for the life of the process; wrong settings end it."""
    models = from_environment()
    url = os.environ.get("SAG_BROKER_URL", "redis://127.0.0.1:6379/0")
    namespace = os.environ.get("SAG_NAMESPACE", "sag")
    async with AsyncGenerationClient(url, namespace) as client, opened_bucket() as bucket:
        yield {"client": client, "bucket": bucket, "models": models}


app = FastAPI(title="SAG studio", lifespan=lifespan)
app.include_router(router)


def client_of(request: Request) -> AsyncGenerationClient:
    """The client that `lifespan` made."""
    client: AsyncGenerationClient = request.state.client
    return client


Client = Annotated[AsyncGenerationClient, Depends(client_of)]


def models_of(request: Request) -> dict[str, Model]:
    """The models that `lifespan` read."""
    models: dict[str, Model] = request.state.models
    return models


Models = Annotated[dict[str, Model], Depends(models_of)]


async def known(task_ids: str, client: Client) -> list[AsyncTaskHandle]:
    """The tasks of a path, commas between their ids; raises `TaskNotFound` at the first unknown."""
    ids = task_ids.split(",")
    if len(ids) > MOST_TASKS:
        what = f"has {len(ids)} ids"
        raise InvalidRequest([FieldError(where="task_ids", what=what, limit=f"<= {MOST_TASKS}")])
    for task_id, status in (await client.status_many(ids)).items():
        if status is None:
            raise TaskNotFound(task_id)
    return [client.handle(task_id) for task_id in ids]


Tasks = Annotated[list[AsyncTaskHandle], Depends(known)]


async def seen(
    tasks: Tasks,
    last_event_id: Annotated[str | None, Header(pattern=r"^\d{1,9}(,\d{1,9})*$")] = None,
) -> list[int]:
    """The number of the last event that the browser has of each task."""
    seqs = [int(seq) for seq in last_event_id.split(",")] if last_event_id else [0] * len(tasks)
    if len(seqs) != len(tasks):
        what, limit = f"has {len(seqs)} numbers", f"{len(tasks)}, one for each task"
        raise InvalidRequest([FieldError(where="last-event-id", what=what, limit=limit)])
    return seqs


@app.post("/tasks", status_code=202)
async def submit(
    requests: Annotated[dict[str, dict[str, Any]], Body(min_length=1, max_length=MOST_TASKS)],
    client: Client,
) -> Statuses:
    """Submit requests by the ids that their tasks are to have; the same again changes nothing.

    Answers before the page gives up, after 5 s, and tries nothing afterwards.
    """
    try:
        async with asyncio.timeout(SUBMIT_S):
            await client.submit_many(list(requests.values()), list(requests))
            return await client.status_many(requests)
    except TimeoutError as error:
        raise ServiceUnavailable("Redis does not answer") from error


@app.get("/tasks/{task_ids}")
async def status(tasks: Tasks, client: Client) -> Statuses:
    """Where the tasks are."""
    return await client.status_many(task.task_id for task in tasks)


@app.get("/tasks/{task_ids}/events")
async def events(tasks: Tasks, seqs: Annotated[list[int], Depends(seen)]) -> EventSourceResponse:
    """Every event of the tasks from the first on, or after those that the browser has.

    One stream for several tasks: to one host a browser opens six connections in all its tabs.
    """
    # Not FastAPI's own streaming of what an endpoint yields: as of 0.165 it logs a traceback when a
    # browser leaves in the middle.
    return EventSourceResponse(lines(tasks, seqs), headers={"Cache-Control": "no-cache"})


@app.delete("/tasks/{task_ids}")
async def cancel(tasks: Tasks) -> Statuses:
    """Cancel the tasks; gives the statuses that they had."""
    former = await asyncio.gather(*(task.cancel() for task in tasks))
    return {task.task_id: status for task, status in zip(tasks, former, strict=True)}


@app.get("/models")
async def offered(models: Models) -> list[dict[str, Any]]:
    """The models of the page, in the order of the settings."""
    return as_list(models)


@app.get("/queue")
async def queue(client: Client, models: Models) -> dict[str, int]:
    """How many tasks wait for each model of the page."""
    return await client.queue_depths(models)


@app.exception_handler(RequestValidationError)
async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
    """FastAPI's validation errors in the form of the contract's."""
    found = [(each["loc"], each["msg"], each["type"]) for each in error.errors()]
    faults = [
        FieldError(where=".".join(map(str, place[1:])) or "body", what=what, limit=limit)
        for place, what, limit in found
    ]
    return await refused(request, InvalidRequest(faults))


@app.exception_handler(InvalidRequest)
async def refused(_request: Request, error: InvalidRequest) -> JSONResponse:
    """422: what is wrong with which field."""
    return JSONResponse({"faults": [fault.model_dump() for fault in error.faults]}, 422)


@app.exception_handler(TaskNotFound)
async def unknown(_request: Request, error: TaskNotFound) -> JSONResponse:
    """404: never submitted, or ended longer ago than records are kept."""
    what = f"no task {error} is known: never submitted, or over for longer than records are kept"
    return JSONResponse({"detail": what}, 404)


@app.exception_handler(ServiceUnavailable)
async def away(_request: Request, error: ServiceUnavailable) -> JSONResponse:
    """503: the same again later, with the same ids."""
    return JSONResponse({"detail": str(error)}, 503)


@app.exception_handler(BucketAway)
async def bucket_away(_request: Request, error: BucketAway) -> JSONResponse:
    """503: the same picture again later."""
    return JSONResponse({"detail": str(error)}, 503)


@app.exception_handler(BucketRefuses)
async def bucket_refuses(_request: Request, error: BucketRefuses) -> JSONResponse:
    """502: the same until S3's settings or rights are mended."""
    return JSONResponse({"detail": str(error)}, 502)


app.mount("/", StaticFiles(directory=Path(__file__).parent / "page", html=True))
