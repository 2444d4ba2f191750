"""The page with a real worker: pictures that start from a picture, with a mask and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import expect

from tests.studio.conftest import PROMPT, ask, task_ids
from tests.studio.drawings import choose, drag, payload_of, submit
from tests.studio.test_pictures import pixels

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import Service

OTHER = "a large blue square on a yellow background"


def circle() -> Image.Image:
    """A red circle on white, as the bundled model draws it."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((14, 14, 50, 50), fill="red")
    return image


def made(page: Page) -> np.ndarray:
    """Make a picture with the form; gives it, 64 px square."""
    submit(page)
    expect(page.locator("[data-finished]")).to_be_visible()
    src = page.locator(".picture").get_attribute("src")
    assert src is not None
    return pixels(src)


@pytest.mark.slow
def test_strength_is_how_much_is_drawn_anew(page: Page, service: Service) -> None:
    """Little keeps the picture and takes few steps; 1 is another picture."""
    source = np.asarray(circle(), dtype=float)
    choose(page, payload_of(circle()))
    for strength, steps, prompt in (("0.1", 2, PROMPT), ("1", 20, OTHER)):
        ask(page, prompt, steps=20, seed=3)
        page.get_by_label("Strength").fill(strength)
        distance = np.abs(made(page) - source).mean()
        assert (distance < 30) if prompt == PROMPT else (distance > 60)
        events = service.client.handle(task_ids(page)[0]).events(timeout=9)
        assert {each.total_steps for each in events if each.type == "progress"} == {steps}
        expect(page.locator(".facts")).to_contain_text(f"Strength{strength}")


@pytest.mark.slow
def test_only_what_is_painted_is_drawn_anew(page: Page) -> None:
    """Far from the mask the picture is as before, under it it is another."""
    source = np.asarray(circle(), dtype=float)
    canvas = choose(page, payload_of(circle()))
    page.get_by_label("Brush").fill("50")
    drag(page, canvas, (0.98, 0.02), (0.98, 0.98))
    page.get_by_label("Strength").fill("1")
    ask(page, OTHER, steps=20, seed=3)
    change = np.abs(made(page) - source).mean(axis=(0, 2))
    assert change[:40].mean() < 30  # the autoencoder's own is 15
    assert change[52:].mean() > 40
