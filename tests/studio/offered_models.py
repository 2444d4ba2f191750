"""Models that a page offers to the tests, and what a user does with them. Knows no pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

EVIL = "<img src=x onerror=\"document.title='hit'\">"
LONG = "w" * 64
OFFERED: dict[str, Any] = {
    "default": {"adapters": ["ink", "oil"]},
    "pixels": {"classes": ["green star", "blue ring", EVIL]},
    "numbered": {"classes": 1000},
    LONG: {"adapters": [LONG]},
}


def pick(page: Page, model: str) -> None:
    """Choose a model."""
    page.get_by_label("Model").select_option(model)


def use(page: Page, name: str, scale: str = "") -> None:
    """Choose an adapter of the shown model."""
    if page.locator("#adapters").get_attribute("open") is None:
        page.locator("#adapters > summary").click()
    page.get_by_role("checkbox", name=name).check()
    page.get_by_label(f"Scale of {name}").fill(scale)
