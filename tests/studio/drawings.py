"""Pictures for the tests of the page, and what the page sends of them."""

from __future__ import annotations

import io
import json
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import FilePayload, Locator, Page, Route

#: Turned by 90 degrees, in EXIF.
ORIENTATION, TURNED = 0x0112, 6


def payload_of(image: Image.Image, name: str = "PNG", **options: Any) -> FilePayload:
    """A file with a picture, for the page's field."""
    data = io.BytesIO()
    image.save(data, name, **options)
    kind = name.lower()
    return {"name": f"picture.{kind}", "mimeType": f"image/{kind}", "buffer": data.getvalue()}


def picture(format_name: str = "PNG", size: tuple[int, int] = (40, 24)) -> bytes:
    """A file with a picture in one colour."""
    data = io.BytesIO()
    Image.new("RGB", size, "teal").save(data, format_name)
    return data.getvalue()


def file(
    size: tuple[int, int] = (96, 64), name: str = "PNG", orientation: int | None = None
) -> FilePayload:
    """A file with a picture: its left half red, its right half blue."""
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0] // 2, size[1]))
    exif = Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
    return payload_of(image, name, exif=exif)


def choose(page: Page, payload: FilePayload | None = None) -> Locator:
    """Open the panel and choose a file; gives the canvas, which shows it."""
    if page.locator("#start").get_attribute("open") is None:
        page.locator("#start > summary").click()
    page.get_by_label("Picture to start from").set_input_files(payload or file())
    canvas = page.locator("#canvas")
    expect(canvas).to_be_visible()
    return canvas


def catch(page: Page) -> list[dict[str, Any]]:
    """Answer submissions in place of the backend; gives the requests, in order, when they come."""
    requests: list[dict[str, Any]] = []

    def answer(route: Route) -> None:
        if route.request.method == "POST":
            requests.extend(json.loads(route.request.post_data or "").values())
        route.fulfill(status=202, json={})

    page.route("**/tasks", answer)
    return requests


def submit(page: Page, button: str = "Make a picture") -> None:
    """Click, and wait until the task is submitted."""
    address = page.url
    page.get_by_role("button", name=button).click()
    page.wait_for_url(lambda url: url != address)


def pixels(studio: str, reference: dict[str, str]) -> np.ndarray:
    """The picture that a request refers to, (height, width, 3)."""
    with urllib.request.urlopen(f"{studio}inputs/{reference['s3']}", timeout=30) as reply:
        data = reply.read()
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def drag(page: Page, canvas: Locator, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw a line with the mouse between two places, each a share of the canvas."""
    page.mouse.move(*place(canvas, *start))
    page.mouse.down()
    page.mouse.move(*place(canvas, *end), steps=5)
    page.mouse.up()


def place(canvas: Locator, x: float, y: float) -> tuple[float, float]:
    """Where a share of the canvas is in the window."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    return box["x"] + x * box["width"], box["y"] + y * box["height"]
