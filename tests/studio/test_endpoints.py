"""The studio's backend without a page: the answers and refusals of each endpoint."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.conftest import END_S, check_events, wait_until
from tests.service.test_outages import Server
from tests.studio.conftest import PROMPT, studio_at

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Service

REQUEST = {"prompt": PROMPT}
PLAIN = {"guidance_scale": 1, "sag_scale": 0}


def call(method: str, url: str, body: object = None, **headers: str) -> tuple[int, Any]:
    """Send a request; gives status and answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=END_S) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def stream(url: str, after: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    """All server-sent events of a stream: id and data."""
    headers = {} if after is None else {"Last-Event-ID": after}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=END_S) as got:
        assert got.headers.get_content_type() == "text/event-stream"
        text = got.read().decode()
    found = re.findall(r"data: (.*)\nid: (.*)\n\n", text)
    return [(number, json.loads(data)) for data, number in found]


def submit(studio: str, number: int = 1, **fields: int) -> list[str]:
    """Submit tasks; gives their ids."""
    ids = [uuid.uuid4().hex for _ in range(number)]
    bodies = {each: {**REQUEST, "num_inference_steps": 3, **fields} for each in ids}
    code, statuses = call("POST", f"{studio}tasks", bodies)
    assert (code, list(statuses)) == (202, ids)
    assert set(statuses.values()) <= {"queued", "running"}
    return ids


def test_a_stream_resumes_after_any_event(studio: str, service: Service) -> None:
    """With `Last-Event-ID` the stream has the events after it, each once."""
    (task_id,) = submit(studio)
    whole = stream(f"{studio}tasks/{task_id}/events")
    check_events(list(service.client.handle(task_id).events(timeout=END_S)))
    assert [number for number, _ in whole] == [str(event["seq"]) for _, event in whole]
    assert [event["seq"] for _, event in whole] == list(range(1, len(whole) + 1))
    assert whole[-1][1]["type"] == "succeeded"
    for place, (number, _) in enumerate(whole):
        assert stream(f"{studio}tasks/{task_id}/events", number) == whole[place + 1 :]


def test_a_stream_of_several_tasks_resumes_after_any_event(studio: str) -> None:
    """The ids of a shared stream hold the position of each task."""
    ids = submit(studio, 3)
    url = f"{studio}tasks/{','.join(ids)}/events"
    whole = stream(url)
    for task_id in ids:
        seqs = [event["seq"] for _, event in whole if event["task_id"] == task_id]
        assert seqs == list(range(1, len(seqs) + 1))
    assert sum(event["type"] == "succeeded" for _, event in whole) == 3
    for place, (number, _) in enumerate(whole):
        rest = [event for _, event in stream(url, number)]
        key = ("task_id", "seq")
        assert sorted([each[name] for name in key] for each in rest) == sorted(
            [each[name] for name in key] for _, each in whole[place + 1 :]
        )


def test_a_repeated_submission_makes_no_second_task(studio: str, service: Service) -> None:
    """A task that is submitted twice with one id runs once."""
    (task_id,) = submit(studio)
    again = {task_id: {**REQUEST, "num_inference_steps": 3}}
    assert call("POST", f"{studio}tasks", again)[0] == 202
    kinds = [event["type"] for _, event in stream(f"{studio}tasks/{task_id}/events")]
    assert kinds.count("queued") == kinds.count("started") == 1
    assert call("GET", f"{studio}tasks/{task_id}") == (200, {task_id: "succeeded"})
    assert call("GET", f"{studio}queue") == (200, {"default": 0})
    assert service.process.poll() is None


def test_a_cancel_gives_the_former_status_and_ends_the_task(studio: str) -> None:
    """A running task ends as `cancelled`; an ended task is unchanged."""
    (task_id,) = submit(studio, num_inference_steps=150, num_images_per_prompt=4)
    url = f"{studio}tasks/{task_id}"
    wait_until(lambda: call("GET", url) == (200, {task_id: "running"}))
    assert call("DELETE", url) == (200, {task_id: "running"})
    assert stream(f"{url}/events")[-1][1]["type"] == "cancelled"
    assert call("DELETE", url) == (200, {task_id: "cancelled"})


@pytest.mark.parametrize(
    ("body", "wheres"),
    [
        ({"a": {"prompt": 5, "seed": -1, "more": 1}}, ["prompt", "seed", "more"]),
        ({"a": REQUEST, "b": {"sag_scale": 11}}, ["[1].sag_scale"]),
        ({"not an id": REQUEST}, ["task_id"]),
        ({"a": 1}, ["a"]),
        ([REQUEST], ["body"]),
        ({}, ["body"]),
        ({str(number): REQUEST for number in range(9)}, ["body"]),
    ],
)
def test_a_refusal_names_every_field(studio: str, body: object, wheres: list[str]) -> None:
    """422 with a fault for each wrong field."""
    code, answer = call("POST", f"{studio}tasks", body)
    assert code == 422
    assert {fault["where"] for fault in answer["faults"]} == set(wheres)
    assert all(fault["what"] and fault["limit"] for fault in answer["faults"])


@pytest.mark.parametrize("header", ["x", "-1", "1,2", "1" * 30, ","])
def test_a_wrong_last_event_id_is_refused(studio: str, header: str) -> None:
    """It must be a number for each task."""
    (task_id,) = submit(studio)
    url = f"{studio}tasks/{task_id}/events"
    code, answer = call("GET", url, **{"Last-Event-ID": header})
    assert (code, answer["faults"][0]["where"]) == (422, "last-event-id")


def test_unknown_ids_are_not_found(studio: str) -> None:
    """404 from every endpoint that takes ids, naming the task; more than 8 ids are refused."""
    (task_id,) = submit(studio)
    for method, rest in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
        code, answer = call(method, f"{studio}tasks/{task_id},unknown{rest}")
        assert code == 404
        assert answer["detail"].startswith("no task unknown is known")
    assert call("GET", f"{studio}tasks/{','.join('abcdefghi')}")[0] == 422


def test_redis_away_is_503(tmp_path: Path) -> None:
    """Every endpoint answers 503 within seconds, and works again with Redis."""
    server = Server(tmp_path)
    url = server.start()
    with studio_at(url, "sag", tmp_path) as studio:
        assert call("GET", f"{studio}queue") == (200, {"default": 0})
        server.stop()
        calls = [
            ("POST", "tasks", {"a": REQUEST}),
            ("GET", "tasks/a", None),
            ("GET", "queue", None),
        ]
        calls += [("DELETE", "tasks/a", None), ("GET", "tasks/a/events", None)]
        for method, path, body in calls:
            code, answer = call(method, f"{studio}{path}", body)
            assert code == 503
            assert "Redis does not answer" in answer["detail"]
        server.start()
        wait_until(lambda: call("POST", f"{studio}tasks", {"a": REQUEST})[0] == 202)
        server.stop()


@pytest.mark.slow
def test_a_browser_that_disconnects_causes_no_traceback(studio: str, folder: Path) -> None:
    """Not even one that stopped reading while megabytes were sent to it."""
    (task_id,) = submit(studio, num_inference_steps=100, preview_every=1, **PLAIN)
    path = f"tasks/{','.join([task_id] * 8)}/events"
    url = f"{studio}{path}"
    whole = stream(url)
    address, port = studio.removeprefix("http://").rstrip("/").split(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect((address, int(port)))
        connection.sendall(f"GET /{path} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        assert b"200 OK" in connection.recv(100)
        assert len(stream(url)) == len(whole)  # meanwhile the connection's buffers are full
    assert len(stream(url)) == len(whole)
    assert "Traceback" not in (folder / "studio.log").read_text()


def test_the_backend_imports_nothing_of_the_worker() -> None:
    """Nor torch: any backend can do the same."""
    code = "import sys, examples.studio.app; print({'worker', 'torch', 'boto3'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
