"""Painting a mask on the picture to start from: mouse, touch, keyboard."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.studio.conftest import PHONE
from tests.studio.drawings import catch, choose, drag, file, pixels, place, submit
from tests.studio.test_page import TOO_WIDE

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Locator, Page

#: Where the page is scrolled to once it stands still for ten frames: focus scrolls it smoothly.
SCROLLED = """() => new Promise(done => {
    let last = -1, still = 0
    const look = () => {
        still = scrollY === last ? still + 1 : 0
        last = scrollY
        still < 10 ? requestAnimationFrame(look) : done(last)
    }
    look()
})"""


def mask_of(page: Page, studio: str, requests: list[dict[str, Any]]) -> np.ndarray:
    """Submit; gives where the request's mask is white, (height, width)."""
    submit(page)
    found = pixels(studio, requests[-1]["mask_image"])
    assert found.shape == pixels(studio, requests[-1]["image"]).shape
    assert np.array_equal(found[..., 0], found[..., 1])
    return found[..., 0] > 127


def test_a_painted_line_is_white_in_the_mask(page: Page, studio: str) -> None:
    """Of the picture's size, as wide as the brush, black where nothing is painted."""
    requests = catch(page)
    canvas = choose(page, file((128, 64)))
    page.get_by_label("Longest side").fill("128")
    page.get_by_label("Brush").fill("10")
    drag(page, canvas, (0.25, 0.5), (0.75, 0.5))
    expect(page.locator("#painted")).to_have_text(re.compile("1[12] % painted"))
    white = mask_of(page, studio, requests)
    assert white.shape == (64, 128)
    assert white[32, 30:98].all()
    assert not white[:24].any()
    assert not white[40:].any()
    assert not white[:, :24].any()
    assert not white[:, 104:].any()
    assert 11 <= white[:, 64].sum() <= 14  # 10 % of 128


def test_erasing_and_clearing_take_back(page: Page, studio: str) -> None:
    """`Erase` paints black, `Clear` all of it; without paint no mask is sent."""
    requests = catch(page)
    canvas, erase = choose(page), page.get_by_role("button", name="Erase")
    drag(page, canvas, (0.1, 0.5), (0.9, 0.5))
    erase.click()
    expect(erase).to_have_attribute("aria-pressed", "true")
    drag(page, canvas, (0.5, 0.1), (0.5, 0.9))
    white = mask_of(page, studio, requests)
    assert white[32, 16]
    assert white[32, 48]
    assert not white[:, 32].any()
    erase.click()
    clear = page.get_by_role("button", name="Clear the mask")
    clear.click()
    expect(page.locator("#painted")).to_have_text("none: all is drawn anew")
    expect(clear).to_be_disabled()
    submit(page)
    assert "mask_image" not in requests[-1]


def test_the_mask_stays_where_it_was_painted(page: Page, studio: str) -> None:
    """When the size of the picture changes; another picture begins without a mask."""
    requests = catch(page)
    canvas = choose(page, file((256, 128)))  # of which 64 x 64 has the middle
    drag(page, canvas, (0.5, 0.5), (0.5, 0.5))
    page.get_by_label("Longest side").fill("256")
    white = mask_of(page, studio, requests)
    assert white.shape == (128, 256)
    rows, columns = np.nonzero(white)
    assert abs(rows.mean() - 63.5) < 3
    assert abs(columns.mean() - 127.5) < 3
    choose(page)
    submit(page)
    assert "mask_image" not in requests[-1]


def test_a_keyboard_alone_paints_a_mask(page: Page, studio: str) -> None:
    """Arrows move the brush from the middle, Space paints, Shift paints a line; named, outlined."""
    requests = catch(page)
    canvas = choose(page)
    page.get_by_label("Picture to start from").focus()
    page.keyboard.press("Tab")
    expect(canvas).to_be_focused()
    expect(canvas).to_have_accessible_name("The picture, to paint a mask on")
    outline = canvas.evaluate("each => getComputedStyle(each).outlineStyle")
    assert outline != "none"
    scrolled = page.evaluate(SCROLLED)
    for key in ("ArrowUp", "ArrowUp", "ArrowUp", "Space"):
        page.keyboard.press(key)
    for _ in range(40):
        page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate(SCROLLED) == scrolled
    white = mask_of(page, studio, requests)
    rows, columns = np.nonzero(white)
    assert rows.max() < 32
    assert columns.min() > 24
    assert columns.max() == 63
    assert page.url.count("task=") == 1


@pytest.mark.parametrize("size", [(96, 64), (64, 400)])
def test_a_finger_paints_on_a_phone(
    new_page: Callable[..., Page], studio: str, size: tuple[int, int]
) -> None:
    """It does not scroll the page, a second finger paints nothing, and all fits the screen."""
    page = new_page(viewport=PHONE, has_touch=True, is_mobile=True)
    page.goto(studio)
    requests = catch(page)
    canvas = choose(page, file(size))
    page.get_by_label("Longest side").fill("256")
    page.locator("#more > summary").click()
    assert page.evaluate(TOO_WIDE) == []
    box = canvas.bounding_box()
    assert box is not None
    assert box["height"] <= 0.65 * PHONE["height"]  # room to scroll
    start = place(canvas, 0.3, 0.2)
    scrolled = page.evaluate(SCROLLED)
    touch(page, [start, place(canvas, 0.5, 0.4), place(canvas, 0.7, 0.6)], place(canvas, 0.5, 0.97))
    assert page.evaluate(SCROLLED) == scrolled
    expect(page.locator("#painted")).to_contain_text("% painted")
    white = mask_of(page, studio, requests)
    height, width = white.shape
    for x, y in ((0.3, 0.2), (0.5, 0.4), (0.7, 0.6)):
        assert white[int(y * height), int(x * width)]
    assert not white[int(0.95 * height)].any()


def touch(page: Page, places: list[tuple[float, float]], second: tuple[float, float]) -> None:
    """Draw a finger over places; a second one touches another place meanwhile."""
    session = page.context.new_cdp_session(page)

    def send(kind: str, *points: tuple[float, float]) -> None:
        listed = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": listed})

    send("touchStart", places[0])
    for each in places[1:]:
        send("touchMove", each)
    send("touchStart", places[-1], second)
    send("touchEnd", places[-1])
    send("touchEnd")


def test_the_canvas_is_drawn_in_both_colour_schemes(
    new_page: Callable[..., Page], studio: str
) -> None:
    """The mask is seen on the picture; the stripes have the page's accent."""
    for scheme in ("light", "dark"):
        page = new_page(color_scheme=scheme)
        page.goto(studio)
        canvas = choose(page)
        before = shown(canvas)
        page.get_by_label("Brush").fill("60")
        drag(page, canvas, (0.5, 0.5), (0.5, 0.5))
        page.mouse.move(0, 0)
        page.wait_for_function("new Promise((done) => requestAnimationFrame(() => done(true)))")
        after = shown(canvas)
        assert before[0] == after[0]  # in the corner
        assert before[1] != after[1]  # in the middle


def shown(canvas: Locator) -> list[list[int]]:
    """The colours of a corner and of the middle."""
    colours: list[list[int]] = canvas.evaluate(
        """view => [[0, 0], [view.width / 2 - 40, view.height / 2]].map(
            ([x, y]) => [...view.getContext("2d").getImageData(x, y, 1, 1).data])"""
    )
    return colours
