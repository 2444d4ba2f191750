"""`python -m tests.studio.screenshots`: the pictures of the studio in `docs/`, from a real run."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import expect

from tests.studio.conftest import DESKTOP, END_MS, PHONE, ask, chromium
from tests.studio.drawings import choose, drag, submit
from tests.studio.offered_models import pick
from tests.studio.test_start import where
from worker.config.models import PIXELS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

DOCS = Path(__file__).resolve().parents[2] / "docs"
SEED = 11


def main() -> None:
    """Start the studio; four pictures of each model, one from a picture, and one on a phone."""
    expect.set_options(timeout=END_MS)
    with _studio() as url, chromium() as browser:
        made = _desktop(browser, url)
        _pixels(browser, url)
        _start(browser, url, made)
        _phone(browser, url)
    for name in ("studio.png", "studio-pixels.png", "studio-start.png", "studio-phone.png"):
        print(DOCS / name)


@contextmanager
def _studio() -> Iterator[str]:
    command = [sys.executable, "-m", "examples.studio", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield where(process)
        finally:
            process.terminate()


def _desktop(browser: Browser, url: str) -> bytes:
    """Gives the third picture."""
    page = browser.new_page(viewport=DESKTOP, reduced_motion="reduce")
    page.goto(url)
    ask(page, "a green ring left of a blue square on a black background", steps=25, seed=SEED)
    _four(page)
    page.mouse.move(0, 0)
    page.screenshot(path=DOCS / "studio.png", full_page=True)
    with urllib.request.urlopen(str(page.locator(".picture").nth(2).get_attribute("src"))) as reply:
        data: bytes = reply.read()
        return data


def _four(page: Page) -> None:
    """Side by side, twice: the first ones wait for the model."""
    for _ in range(2):
        submit(page, "Side by side")
        expect(page.locator("[data-finished]")).to_have_count(4)


def _pixels(browser: Browser, url: str) -> None:
    """A class, four times, with the pixel-space model."""
    page = browser.new_page(viewport=DESKTOP, reduced_motion="reduce")
    page.goto(url)
    pick(page, PIXELS)
    page.get_by_label("Which class").select_option("green star")
    page.get_by_label("Seed").fill("12")
    _four(page)
    page.mouse.move(0, 0)
    page.screenshot(path=DOCS / "studio-pixels.png", full_page=True)


def _start(browser: Browser, url: str, picture: bytes) -> None:
    """Its right half is painted over, and drawn anew as something else."""
    page = browser.new_page(viewport=DESKTOP, reduced_motion="reduce")
    page.goto(url)
    canvas = choose(page, {"name": "ring.png", "mimeType": "image/png", "buffer": picture})
    page.get_by_label("Brush").fill("44")
    drag(page, canvas, (0.76, 0.25), (0.76, 0.75))
    page.get_by_label("Strength").fill("1")
    ask(page, "a green ring left of a yellow star on a black background", steps=25, seed=2)
    page.get_by_role("button", name="Make a picture").click()
    expect(page.locator("[data-finished]")).to_be_visible()
    page.mouse.move(0, 0)
    page.screenshot(path=DOCS / "studio-start.png", full_page=True)


def _phone(browser: Browser, url: str) -> None:
    """In dark colours, in the middle of a picture."""
    page = browser.new_page(viewport=PHONE, color_scheme="dark", reduced_motion="reduce")
    page.goto(url)
    ask(page, "a large yellow star on a purple background", steps=150, seed=SEED)
    page.get_by_role("button", name="Make a picture").click()
    expect(page.locator(".state")).to_contain_text("Step 1", timeout=END_MS)
    expect(page.locator(".picture")).to_be_visible()
    page.screenshot(path=DOCS / "studio-phone.png", full_page=True)


if __name__ == "__main__":
    main()
