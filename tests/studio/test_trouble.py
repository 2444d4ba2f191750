"""The page reports that Redis, the backend or every worker is away, and recovers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from api_contracts import GenerationClient, TaskStatus
from tests.service.conftest import END_S
from tests.service.test_outages import Server
from tests.studio.conftest import END_MS, MANY, ask, studio_at, task_ids
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from playwright.sync_api import Page, Route

    from tests.conftest import Service


@pytest.mark.slow
def test_a_missing_worker_is_reported(
    new_page: Callable[..., Page],
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path: Path,
) -> None:
    """After some seconds, with the length of the queue; a worker that starts makes the picture."""
    with (
        embedded.redis_server(tmp_path) as url,
        studio_at(url, "sag", tmp_path) as studio,
    ):
        page = new_page()
        page.goto(studio)
        ask(page, steps=5)
        page.get_by_role("button", name="Make a picture").click()
        expect(page.get_by_role("status")).to_have_text("Waiting for a worker.")
        expect(page.get_by_role("status")).to_have_text("No worker has taken this yet.")
        expect(page.locator(".remark")).to_contain_text("1 waiting")
        expect(page.locator("#queue")).to_have_text("1 task waits")
        with start_service(url, namespace="sag"):
            expect(page.get_by_role("status")).to_have_text("The picture is done.")
            expect(page.locator(".remark")).to_be_empty()
            expect(page.locator("#queue")).to_have_text("No tasks wait")


@pytest.mark.slow
def test_a_picture_that_cannot_be_loaded_is_reported(
    new_page: Callable[..., Page], studio: str
) -> None:
    """With an expired link or without S3 the page says so and keeps the last preview."""
    page = new_page()
    page.route("**/0.png*", lambda route: route.fulfill(status=403))
    page.goto(studio)
    ask(page, steps=5)
    page.get_by_role("button", name="Make a picture").click()
    expect(page.locator(".remark")).to_contain_text("link has run out")
    assert str(page.locator(".picture").get_attribute("src")).startswith("data:")


@pytest.mark.slow
def test_a_file_without_a_link_is_named(
    new_page: Callable[..., Page],
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path: Path,
) -> None:
    """Without presigned URLs the page shows the file's key."""
    with (
        embedded.redis_server(tmp_path) as url,
        start_service(url, namespace="links", presign_s="0"),
        studio_at(url, "links", tmp_path) as studio,
    ):
        page = new_page()
        page.goto(studio)
        ask(page, steps=5)
        page.get_by_role("button", name="Make a picture").click()
        expect(page.get_by_role("status")).to_have_text("The picture is done.")
        expect(page.locator(".remark")).to_contain_text(f"links/outputs/{task_ids(page)[0]}/0.png")


def test_a_page_without_its_backend_is_whole(new_page: Callable[..., Page], tmp_path: Path) -> None:
    """It has the form of one prompt and says what is wrong; what is asked then is sent once."""
    with embedded.redis_server(tmp_path) as url, studio_at(url, "sag", tmp_path) as studio:
        page = new_page()
        for path in ("models", "queue"):
            page.route(f"**/{path}", lambda route: route.abort())
        page.goto(studio)
        expect(page.get_by_role("alert")).to_contain_text("backend does not answer")
        expect(page.get_by_label("What shall it draw?")).to_be_visible()
        for hidden in ("#choice", "#from-class", "#adapters"):
            expect(page.locator(hidden)).to_be_hidden()
        for _ in range(2):
            page.get_by_role("button", name="Make a picture").click()
        expect(page.get_by_role("status")).to_have_text("Waiting for the backend.")
        page.unroute_all()
        expect(page.get_by_role("status")).to_have_text("Waiting for a worker.")
        expect(page.locator("#queue")).to_have_text("1 task waits")
        expect(page.get_by_role("alert")).to_be_empty()


@pytest.mark.slow
def test_a_submission_waits_for_redis(new_page: Callable[..., Page], tmp_path: Path) -> None:
    """A submission made meanwhile is sent once when Redis is back; a followed task goes on."""
    server = Server(tmp_path)
    with studio_at(server.start(), "sag", tmp_path) as studio:
        page = new_page()
        page.goto(studio)
        ask(page, "a large red circle on a white background")
        page.get_by_role("button", name="Make a picture").click()
        expect(page.locator(".state")).to_have_text("Waiting for a worker")
        (followed,) = task_ids(page)
        server.stop()
        expect(page.get_by_role("alert")).to_contain_text("Redis does not answer")
        other = page.context.new_page()
        other.goto(studio)
        ask(other, "a green ring on a black background")
        other.get_by_role("button", name="Make a picture").click()
        expect(other.get_by_role("alert")).to_contain_text("Redis does not answer")
        expect(other.get_by_role("status")).to_have_text("Submitting.")
        url = server.start()
        expect(other.locator(".state")).to_have_text("Waiting, 1 before it")
        expect(other.get_by_role("alert")).to_be_empty()
        expect(page.get_by_role("alert")).to_be_empty()
        with GenerationClient(url) as client:
            assert client.queue_depths() == {"default": 2}
            client.handle(followed).cancel()
            expect(page.get_by_role("status")).to_have_text("Cancelled.")
        server.stop()


@pytest.mark.slow
def test_an_unsent_task_can_be_cancelled(new_page: Callable[..., Page], tmp_path: Path) -> None:
    """While Redis is away, Escape cancels the submission; nothing is sent later.

    What was under way is withdrawn when Redis is back, be it a task by then or not.
    """
    server = Server(tmp_path)
    with studio_at(server.start(), "sag", tmp_path) as studio:
        page = new_page()
        page.goto(studio)
        make = page.get_by_role("button", name="Make a picture")
        place = make.bounding_box()
        server.stop()
        expect(page.get_by_role("alert")).to_contain_text("Redis does not answer")
        assert make.bounding_box() == place, "what is to be clicked has moved"
        late = new_page()  # one that is opened only now says so, too
        late.goto(studio)
        expect(late.get_by_role("alert")).to_contain_text("Redis does not answer")
        with page.expect_request("**/tasks") as submission:
            make.click()
        (task_id,) = json.loads(submission.value.post_data or "")
        expect(page.get_by_role("status")).to_have_text("Submitting.")
        page.keyboard.press("Escape")
        expect(page.get_by_role("status")).to_have_text("Not submitted.")
        expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.method))
        with page.expect_response(
            lambda answer: answer.request.method == "DELETE" and answer.status in (200, 404),
            timeout=END_MS,
        ):
            url = server.start()
        expect(page.get_by_role("alert")).to_be_empty()
        while sent.count("GET") < 4:  # longer than the pause before a retry
            page.wait_for_event("requestfinished")
        assert "POST" not in sent
        with GenerationClient(url) as client:
            assert client.status_many([task_id])[task_id] in (None, TaskStatus.CANCELLED)
        server.stop()


@pytest.mark.slow
def test_a_submission_under_way_is_withdrawn(new_page: Callable[..., Page], tmp_path: Path) -> None:
    """A task that reaches Redis after Escape is cancelled, also when Redis is away meanwhile."""
    server = Server(tmp_path)
    url = server.start()
    with studio_at(url, "sag", tmp_path) as studio:
        page = new_page()
        page.goto(studio)
        held: list[Route] = []
        page.route("**/tasks", lambda route: held.append(route))  # noqa: PLW0108  # Playwright marks it
        with page.expect_request("**/tasks"):
            page.get_by_role("button", name="Make a picture").click()
        page.keyboard.press("Escape")
        expect(page.get_by_role("status")).to_have_text("Not submitted.")
        (task_id,) = json.loads(held[0].request.post_data or "")
        page.route("**/tasks/*", lambda route: route.fulfill(status=503), times=1)
        with page.expect_response(
            lambda answer: answer.request.method == "DELETE" and answer.ok, timeout=END_MS
        ):
            held[0].continue_()
        with GenerationClient(url) as client:
            assert client.handle(task_id).status() is TaskStatus.CANCELLED
        server.stop()


@pytest.mark.slow
def test_a_stream_continues_with_the_next_backend(
    new_page: Callable[..., Page], service: Service, tmp_path: Path
) -> None:
    """When the backend is restarted the stream continues after the last event."""
    port, namespace = embedded.free_port(), service.environment["SAG_NAMESPACE"]
    page = new_page()
    with studio_at(service.broker_url, namespace, tmp_path, port) as studio:
        page.goto(studio)
        ask(page, steps=MANY, plain=True)
        page.get_by_role("button", name="Make a picture").click()
        expect(page.locator(".picture")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("backend does not answer")
    (task_id,) = task_ids(page)
    previews = sum(
        event.type == "progress" and event.preview is not None
        for event in service.client.handle(task_id).events(timeout=END_S)
    )
    with studio_at(service.broker_url, namespace, tmp_path, port):
        expect(page.get_by_role("status")).to_have_text("The picture is done.")
        expect(page.get_by_role("alert")).to_be_empty()
        expect(page.get_by_label("Look back")).to_have_attribute("max", str(previews))
    page.close()
