"""The page takes a picture to start from, and sends it as the task will draw it."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.studio.conftest import studio_at
from tests.studio.drawings import TURNED, catch, choose, drag, file, pixels, submit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import FilePayload, Page, Route

    from tests.conftest import Service

#: Drops a file, base64 of its bytes and its name, on the middle of the page.
DROP = """([data, name]) => {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type: "image/png" }));
  const target = document.getElementById("stage");
  const drop = (type) =>
    target.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
  return [drop("dragover"), document.body.className, drop("drop"), document.body.className];
}"""
RED, BLUE = [255, 0, 0], [0, 0, 255]


@pytest.mark.parametrize(
    ("payload", "size"),
    [
        (file((96, 64)), (64, 64)),
        (file((600, 400), "JPEG"), (64, 64)),
        (file((64, 64), "WEBP"), (64, 64)),
    ],
)
def test_a_chosen_picture_is_sent_with_its_strength(
    page: Page, studio: str, payload: FilePayload, size: tuple[int, int]
) -> None:
    """At the bundled model's size, with its middle, as PNG; no mask where none is painted."""
    requests = catch(page)
    choose(page, payload)
    page.get_by_label("Strength").fill("0.35")
    submit(page)
    (request,) = requests
    assert request["strength"] == 0.35
    assert "mask_image" not in request
    assert request["metadata"]["image"] == request["image"]["s3"]
    found = pixels(studio, request["image"])
    assert found.shape == (*size, 3)
    assert np.abs(found[:, :30] - np.array(RED)).max() < 16
    assert np.abs(found[:, 34:] - np.array(BLUE)).max() < 16


def test_the_longest_side_can_be_set(page: Page, studio: str) -> None:
    """Both sides are multiples of 8; the page says which, and nothing is distorted."""
    requests = catch(page)
    choose(page, file((1000, 500)))
    page.get_by_label("Longest side").fill("200")
    expect(page.locator("#side-about")).to_have_text(re.compile("with 200 . 104 pixels"))
    submit(page)
    assert pixels(studio, requests[0]["image"]).shape == (104, 200, 3)
    page.get_by_label("Longest side").fill("201")  # invalid: the browser says so, nothing is sent
    page.get_by_role("button", name="Make a picture").click()
    expect(page.get_by_label("Longest side")).to_be_focused()
    assert len(requests) == 1


def test_a_photo_is_sent_upright_and_without_its_data(page: Page, studio: str) -> None:
    """A camera's orientation is applied: a picture that is turned right has its left at the top."""
    requests = catch(page)
    choose(page, file((128, 128), "JPEG", TURNED))
    submit(page)
    found = pixels(studio, requests[0]["image"])
    assert np.abs(found[:30] - np.array(RED)).max() < 16
    assert np.abs(found[34:] - np.array(BLUE)).max() < 16


def test_a_dropped_picture_is_taken(page: Page) -> None:
    """Anywhere on the page, which shows that it would take it; the browser does not open it."""
    payload = file()
    data = base64.b64encode(payload["buffer"]).decode()
    assert page.evaluate(DROP, [data, "dropped.png"]) == [False, "dragged", False, ""]
    expect(page.locator("#canvas")).to_be_visible()
    page.locator("#start > summary").click()
    expect(page.locator("#start-gist")).to_have_text("dropped.png, strength 0.80")


def test_a_file_that_is_no_picture_is_named(page: Page) -> None:
    """Beside the field, and the picture before it stays."""
    choose(page)
    other: FilePayload = {"name": "a.txt", "mimeType": "text/plain", "buffer": b"text"}
    page.get_by_label("Picture to start from").set_input_files(other)
    expect(page.locator("#image-fault")).to_have_text("a.txt is no picture that can be shown.")
    expect(page.locator("#canvas")).to_be_visible()


def test_a_removed_picture_is_not_sent(page: Page) -> None:
    """Nor its strength; the same file can be chosen again."""
    requests = catch(page)
    choose(page)
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_label("Picture to start from")).to_be_focused()
    submit(page)
    assert not requests[0].keys() & {"image", "mask_image", "strength"}
    choose(page)
    submit(page)
    assert requests[1].keys() >= {"image", "strength"}


def test_same_again_has_the_picture_and_its_mask(page: Page, studio: str, service: Service) -> None:
    """As in another tab: what an earlier task started from is fetched again, and sent again."""
    requests = catch(page)
    canvas = choose(page)
    drag(page, canvas, (0.2, 0.5), (0.4, 0.5))
    page.get_by_label("Strength").fill("0.6")
    submit(page)
    fields = {name: value for name, value in requests[0].items() if name == "metadata"}
    task = {"prompt": "a", "num_inference_steps": 2, **fields}
    page.goto(f"{studio}?task={service.client.submit(task).task_id}")
    expect(page.locator("#canvas")).to_be_visible()
    expect(page.get_by_label("Strength")).to_have_value("0.6")
    submit(page)
    for field in ("image", "mask_image"):
        first, again = (pixels(studio, each[field]) for each in requests)
        assert np.array_equal(first, again)
        assert requests[0][field] != requests[1][field]


def test_a_picture_that_is_not_kept_any_more_is_reported(
    page: Page, studio: str, service: Service
) -> None:
    """The form then starts from noise; other callers' keys are not even asked for."""
    for key in (f"studio/{'0' * 32}.png", "../tasks/a", "caller/start.png"):
        task = {"prompt": "a", "num_inference_steps": 2, "metadata": {"prompt": "a", "image": key}}
        page.goto(f"{studio}?task={service.client.submit(task).task_id}")
        expect(page.locator("#image-fault")).to_have_text(
            re.compile("The picture that it started from is not")
        )
        expect(page.locator("#canvas")).to_be_hidden()


def test_a_bucket_that_is_away_is_reported_and_waited_for(page: Page) -> None:
    """As with Redis: the picture is sent again, and the task is submitted once."""
    requests = catch(page)
    answers = [503, 503]
    page.route(
        "**/inputs",
        lambda route: route.fulfill(status=answers.pop()) if answers else route.fallback(),
    )
    choose(page)
    page.get_by_role("button", name="Make a picture").click()
    expect(page.get_by_role("alert")).to_contain_text("The bucket for pictures does not answer.")
    page.wait_for_url(re.compile("task="))
    assert len(requests) == 1
    expect(page.get_by_role("alert")).to_be_empty()


def test_what_is_stored_is_not_sent_again(page: Page) -> None:
    """Where the mask can't be stored, the mask alone is sent until it can."""
    requests, sent = catch(page), list[int]()

    def fail_once(route: Route) -> None:
        sent.append(len(route.request.post_data_buffer or b""))
        if len(sent) == 2:
            route.fulfill(status=503)
        else:
            route.fallback()

    page.route("**/inputs", fail_once)
    drag(page, choose(page), (0.4, 0.5), (0.6, 0.5))
    page.get_by_role("button", name="Make a picture").click()
    page.wait_for_url(re.compile("task="))
    (request,) = requests
    assert request["image"] != request["mask_image"]
    image, mask, again = sent
    assert mask == again != image


def test_what_s3_refuses_is_shown_and_not_sent_again(page: Page) -> None:
    """With the backend's words at the field, until the next try; no task is submitted."""
    requests, told = catch(page), {"detail": "S3 refuses it: AccessDenied"}
    sent: list[str] = []

    def refuse(route: Route) -> None:
        sent.append(route.request.method)
        route.fulfill(status=502, json=told)

    page.route("**/inputs", refuse)
    choose(page)
    page.get_by_role("button", name="Make a picture").click()
    expect(page.locator("#image-fault")).to_have_text(
        "image is not stored: S3 refuses it: AccessDenied"
    )
    expect(page.get_by_role("status")).to_have_text("This was refused.")
    for _ in range(3):  # longer than the pause before another try
        page.wait_for_event("requestfinished")
    assert (sent, requests) == (["POST"], [])
    expect(page.locator("#image-fault")).to_be_visible()


def test_a_picture_that_is_refused_is_reported_at_its_field(page: Page) -> None:
    """With the backend's words, and the panel is opened."""
    fault = {"where": "image", "what": "has too many pixels", "limit": "<= 4096 a side"}
    page.route("**/inputs", lambda route: route.fulfill(status=422, json={"faults": [fault]}))
    choose(page)
    page.locator("#start > summary").click()
    page.get_by_role("button", name="Make a picture").click()
    expect(page.locator("#image-fault")).to_have_text("image has too many pixels")
    expect(page.locator("#image-fault")).to_be_visible()


def test_a_studio_without_a_bucket_says_so(
    new_page: Callable[..., Page], service: Service, tmp_path: Path
) -> None:
    """In place of the field."""
    with studio_at(service.broker_url, "sag", tmp_path) as studio:
        page = new_page()
        page.goto(studio)
        page.locator("#start > summary").click()
        expect(page.locator("#drop")).to_contain_text("This studio has no bucket for pictures")
        expect(page.get_by_label("Picture to start from")).to_be_disabled()
