"""The FastAPI backend, in uvicorn, over a real worker."""

from __future__ import annotations

import http.client
import json
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from tests.examples.conftest import ANSWER_S, EXAMPLES, LONG, PNG, PROMPT, ask, wheres
from tests.service.conftest import END_S, wait_for
from worker.embedded import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.conftest import Service

    StartServer = Callable[..., AbstractContextManager[str]]

COMMAND = ["-m", "uvicorn", "pictures:app", "--port", "{port}"]
COMMAND += ["--app-dir", str(EXAMPLES / "fastapi")]


@pytest.fixture(scope="module")
def backend(standard: Service, start_server: StartServer) -> Iterator[str]:
    """The backend's URL."""
    with start_server(*COMMAND, SAG_BROKER_URL=standard.broker_url) as url:
        yield url


def events(url: str, after: int | None = None, most: int | None = None) -> list[dict[str, Any]]:
    """The stream's events: all, or the first `most`, after which the connection is closed."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=ANSWER_S)
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    found: list[dict[str, Any]] = []
    try:
        connection.request("GET", place.path, headers=headers)
        answer = connection.getresponse()
        assert (answer.status, answer.headers.get_content_type()) == (200, "text/event-stream")
        frame: dict[str, str] = {}
        while (most is None or len(found) < most) and (line := answer.readline().decode()):
            name, _, value = line.rstrip("\n").partition(": ")
            if name:
                frame[name] = value
            elif "data" in frame:
                event = json.loads(frame["data"])
                assert (frame["id"], frame["event"]) == (str(event["seq"]), event["type"])
                found.append(event)
                frame = {}
    finally:
        connection.close()
    return found


def test_a_picture_appears(backend: str) -> None:
    """POST gives the task's place; GET there gives, once it has ended, the URL of a PNG."""
    accepted = ask(f"{backend}/pictures", "POST", {"prompt": PROMPT})
    assert accepted.status == 202
    place = accepted.headers["Location"]
    assert place == f"/pictures/{accepted.json['id']}"
    end = ask(f"{backend}{place}?wait_s=60").json
    assert (end["id"], end["status"]) == (accepted.json["id"], "succeeded")
    with urlopen(end["result"]["images"][0]["url"], timeout=ANSWER_S) as picture:
        assert picture.read().startswith(PNG)
    assert ask(f"{backend}{place}").json == end


def test_the_same_key_is_one_task(backend: str) -> None:
    """A request sent again with its Idempotency-Key is the same task; another key makes another."""
    keys = [key := str(uuid.uuid4()), key, str(uuid.uuid4())]
    ids = [
        ask(f"{backend}/pictures", "POST", {"prompt": PROMPT}, Idempotency_Key=each).json["id"]
        for each in keys
    ]
    assert ids[0] == ids[1] != ids[2]
    kinds = [event["type"] for event in events(f"{backend}/pictures/{ids[0]}/events")]
    assert [kinds.count(each) for each in ("queued", "started", "succeeded")] == [1, 1, 1]


def test_a_stream_resumes_after_the_last_event_id(backend: str, standard: Service) -> None:
    """A stream that was closed and is resumed with Last-Event-ID has each event once, in order."""
    task_id = ask(f"{backend}/pictures", "POST", {"prompt": PROMPT}).json["id"]
    url = f"{backend}/pictures/{task_id}/events"
    got = events(url, most=3)
    got += events(url, after=got[-1]["seq"], most=2)
    assert len(got) == 5
    got += events(url, after=got[-1]["seq"])
    stored = standard.client.handle(task_id).events(timeout=END_S)
    assert got == [event.model_dump(mode="json") for event in stored]
    assert got[-1]["type"] == "succeeded"
    assert events(url, after=got[-1]["seq"]) == []


def test_a_task_can_be_cancelled(backend: str, standard: Service) -> None:
    """DELETE ends a running task; its place then gives the status and no result."""
    place = backend + ask(f"{backend}/pictures", "POST", LONG).headers["Location"]
    task_id = place.rpartition("/")[2]
    wait_for(standard.client.handle(task_id), "started")
    asked = ask(place, "DELETE")
    assert (asked.status, asked.json) == (202, {"id": task_id, "was": "running"})
    assert ask(f"{place}?wait_s=60").json == {"id": task_id, "status": "cancelled"}


def test_a_wait_that_times_out_is_504(backend: str) -> None:
    """GET with `wait_s` answers 504 after that time, and the task goes on."""
    place = backend + ask(f"{backend}/pictures", "POST", LONG).headers["Location"]
    assert ask(f"{place}?wait_s=0.2").status == 504
    assert ask(place).json["status"] in ("queued", "running")
    assert ask(place, "DELETE").json["was"] in ("queued", "running")


def test_a_task_that_the_worker_refuses_has_its_error(backend: str) -> None:
    """A request beyond the worker's own limits fails the task, and its place gives the error."""
    body = {"prompt": PROMPT, "num_inference_steps": 151}
    place = backend + ask(f"{backend}/pictures", "POST", body).headers["Location"]
    end = ask(f"{place}?wait_s=60").json
    assert (end["status"], end["error"]["code"]) == ("failed", "invalid_request")
    assert end["error"]["details"]["faults"][0]["where"] == "num_inference_steps"


def test_an_invalid_request_names_its_fields(backend: str) -> None:
    """422 with every fault, and nothing is submitted; also for a key that can't be an id."""
    refused = ask(f"{backend}/pictures", "POST", {"prompt": PROMPT, "height": 65, "nope": 1})
    assert (refused.status, wheres(refused)) == (422, {"height", "nope"})
    odd = ask(f"{backend}/pictures", "POST", {"prompt": PROMPT}, Idempotency_Key="a b")
    assert (odd.status, "idempotency-key" in odd.body.decode().lower()) == (422, True)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_task_is_not_found(backend: str, method: str) -> None:
    """404, for its events as well, before a stream begins."""
    assert ask(f"{backend}/pictures/unknown", method).status == 404
    assert ask(f"{backend}/pictures/unknown/events").status == 404


def test_redis_away_is_503(start_server: StartServer) -> None:
    """The backend starts without Redis, and every request gets 503."""
    away = f"redis://127.0.0.1:{free_port()}/0"
    with start_server(*COMMAND, SAG_BROKER_URL=away) as url:
        assert ask(f"{url}/pictures", "POST", {"prompt": PROMPT}).status == 503
        assert ask(f"{url}/pictures/demo-18").status == 503
        assert ask(f"{url}/pictures/demo-18/events").status == 503
