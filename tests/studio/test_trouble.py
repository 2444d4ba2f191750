"""The page when Redis, the backend or every worker is away: it says so in words, and goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from playwright.sync_api import expect

from api_contracts import GenerationClient
from tests.service.conftest import END_S
from tests.service.test_outages import Server
from tests.studio.conftest import ask, studio_at, task_ids
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from playwright.sync_api import Page

    from tests.conftest import Service


def test_without_a_worker_the_page_says_so(
    new_page: Callable[..., Page],
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path: Path,
) -> None:
    """After some seconds, with the length of the queue; when a worker comes the picture is made."""
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


def test_a_picture_that_the_browser_cannot_load_is_told(
    new_page: Callable[..., Page], studio: str
) -> None:
    """A link that has run out, or S3 away: the page says so and keeps the last preview."""
    page = new_page()
    page.route("**/0.png*", lambda route: route.fulfill(status=403))
    page.goto(studio)
    ask(page, steps=5)
    page.get_by_role("button", name="Make a picture").click()
    expect(page.locator(".remark")).to_contain_text("link has run out")
    assert str(page.locator(".picture").get_attribute("src")).startswith("data:")


def test_a_worker_that_makes_no_links_is_told(
    new_page: Callable[..., Page],
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path: Path,
) -> None:
    """The page names the file in its place."""
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


def test_redis_away_is_told_and_what_was_asked_for_is_kept(
    new_page: Callable[..., Page], tmp_path: Path
) -> None:
    """What is submitted meanwhile is sent when Redis is back, once; a followed task goes on."""
    server = Server(tmp_path)
    with studio_at(server.come(), "sag", tmp_path) as studio:
        page = new_page()
        page.goto(studio)
        ask(page, "a large red circle on a white background")
        page.get_by_role("button", name="Make a picture").click()
        expect(page.locator(".state")).to_have_text("Waiting for a worker")
        (followed,) = task_ids(page)
        server.go()
        expect(page.get_by_role("alert")).to_contain_text("Redis does not answer")
        other = page.context.new_page()
        other.goto(studio)
        ask(other, "a green ring on a black background")
        other.get_by_role("button", name="Make a picture").click()
        expect(other.get_by_role("alert")).to_contain_text("Redis does not answer")
        expect(other.get_by_role("status")).to_have_text("Submitting.")
        url = server.come()
        expect(other.locator(".state")).to_have_text("Waiting, 1 before it")
        expect(other.get_by_role("alert")).to_be_empty()
        expect(page.get_by_role("alert")).to_be_empty()
        with GenerationClient(url) as client:
            assert client.queue_depths() == {"default": 2}
            client.handle(followed).cancel()
            expect(page.get_by_role("status")).to_have_text("Cancelled.")
        server.go()


def test_an_unsent_task_can_be_taken_back(new_page: Callable[..., Page], tmp_path: Path) -> None:
    """While Redis is away, Escape gives up; nothing is sent when it is back."""
    server = Server(tmp_path)
    with studio_at(server.come(), "sag", tmp_path) as studio:
        server.go()
        page = new_page()
        page.goto(studio)
        page.get_by_role("button", name="Make a picture").click()
        expect(page.get_by_role("alert")).to_contain_text("Redis does not answer")
        page.keyboard.press("Escape")
        expect(page.get_by_role("status")).to_have_text("Not submitted.")
        expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.method))
        url = server.come()
        expect(page.get_by_role("alert")).to_be_empty()
        while sent.count("GET") < 4:  # longer than the pause before another try
            page.wait_for_event("requestfinished")
        assert "POST" not in sent
        with GenerationClient(url) as client:
            assert client.queue_depths() == {"default": 0}
        server.go()


def test_the_backend_away_is_told_and_nothing_is_missed(
    new_page: Callable[..., Page], service: Service, tmp_path: Path
) -> None:
    """The stream resumes with the backend that comes after, from where it was."""
    port, namespace = embedded.free_port(), service.environment["SAG_NAMESPACE"]
    page = new_page()
    with studio_at(service.broker_url, namespace, tmp_path, port) as studio:
        page.goto(studio)
        ask(page, steps=150)
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
