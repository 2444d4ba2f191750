"""The page of several models: reloads, other programs' tasks, the queue, keyboard and phone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from api_contracts import GenerationClient
from tests.studio.conftest import PHONE, without_worker
from tests.studio.drawings import submit
from tests.studio.offered_models import EVIL, LONG, OFFERED, pick, use
from tests.studio.test_endpoints import REQUEST, call
from tests.studio.test_page import FOCUS, TOO_WIDE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Page

#: How the names of what has the focus begin.
NAMES = ("Model", "What shall", "Which class", "SAG")


def test_a_reload_has_the_model_its_class_and_its_adapters(several: Page) -> None:
    """The form is filled from the task, as `Same again` does; no class is one, too."""
    for name in ("blue ring", "No class"):
        pick(several, "pixels")
        several.get_by_label("Which class").select_option(name)
        submit(several)
        several.reload()
        heading = {"No class": "no class"}.get(name, name)
        expect(several.locator("#asked")).to_have_text(heading)
        expect(several.locator(".picture")).to_have_attribute("alt", heading)
        expect(several.locator(".facts")).to_contain_text("Modelpixels")
        expect(several.get_by_label("Which class").locator(":checked")).to_have_text(name)
    pick(several, "default")
    use(several, "oil", "2")
    submit(several)
    expect(several.locator(".facts")).to_contain_text("Adaptersoil 2")
    pick(several, LONG)
    several.get_by_role("button", name="Same again").click()
    for _ in range(2):
        expect(several.get_by_label("Model")).to_have_value("default")
        expect(several.get_by_label("Scale of oil")).to_have_value("2")
        expect(several.get_by_label("oil", exact=True)).to_be_checked()
        expect(several.get_by_label("ink", exact=True)).not_to_be_checked()
        several.reload()


@pytest.mark.parametrize(
    "metadata",
    [
        {"model": "pixels", "class_labels": "2"},
        {"model": "pixels", "class_labels": EVIL, "loras": EVIL},
        {"model": EVIL, "class_labels": "9", "loras": '[{"name": 5}, null, {"name": "<b>x</b>"}]'},
        {"prompt": EVIL, "loras": '{"length": 2}'},
    ],
)
def test_hostile_metadata_are_only_text(
    several: Page, offers: tuple[str, str], metadata: dict[str, str]
) -> None:
    """What another program wrote fills the form as far as it can, and is never markup."""
    url, redis_url = offers
    with GenerationClient(redis_url) as client:
        task = client.submit({"prompt": "a", "metadata": metadata}).task_id
    several.goto(f"{url}?task={task}")
    expect(several.locator("#asked")).not_to_be_empty()
    expect(several.get_by_role("button", name="Same again")).to_be_enabled()
    assert several.locator("img").count() == 1
    assert several.evaluate("document.querySelectorAll('[onerror], dd b').length") == 0
    assert "hit" not in several.title()


def test_the_queue_counts_every_model(new_page: Callable[..., Page], tmp_path: Path) -> None:
    """The line on the page is their sum; tasks of models that are not offered are not counted."""
    with without_worker(tmp_path) as (studio, redis_url), GenerationClient(redis_url) as client:
        requests = [{"model": "pixels", "class_labels": 0}, {"model": "pixels", "class_labels": 1}]
        client.submit_many([REQUEST, *requests, REQUEST | {"model": "other"}])
        waiting = {"default": 1, "pixels": 2, "numbered": 0, LONG: 0}
        assert call("GET", f"{studio}queue") == (200, waiting)
        page = new_page()
        page.goto(studio)
        expect(page.locator("#queue")).to_have_text("3 tasks wait")


def test_a_keyboard_reaches_models_classes_and_adapters(several: Page) -> None:
    """In reading order, each named and with an outline; a class is found by its first letters."""
    wanted = [("default", ["Model", "What shall"]), ("pixels", ["Model", "Which class", "SAG"])]
    for model, names in wanted:
        pick(several, model)
        several.locator("body").evaluate("body => (body.tabIndex = -1, body.focus())")
        assert tabbed(several, len(names)) == names
    several.get_by_label("Which class").focus()
    several.keyboard.type("bl")
    expect(several.get_by_label("Which class")).to_have_value("1")
    pick(several, "default")
    several.locator("#adapters > summary").focus()
    several.keyboard.press("Enter")
    several.keyboard.press("Tab")
    several.keyboard.press("Space")
    expect(several.get_by_role("checkbox", name="ink")).to_be_checked()
    several.keyboard.press("Tab")
    several.keyboard.type("0.5")
    expect(several.get_by_label("Scale of ink")).to_have_value("0.5")


def tabbed(page: Page, count: int) -> list[str]:
    """The first words of what Tab reaches next, without the options of lists."""
    names = []
    for _ in range(count):
        page.keyboard.press("Tab")
        name, is_seen = page.evaluate(FOCUS)
        assert is_seen, f"no outline around {name}"
        names.append(next(each for each in NAMES if name.startswith(each)))
    return names


@pytest.mark.slow
def test_on_a_phone_no_model_is_wider_than_the_screen(
    new_page: Callable[..., Page], offers: tuple[str, str]
) -> None:
    """360 px: with each model, long names of models and adapters, and a task of each."""
    page = new_page(viewport=PHONE, has_touch=True, is_mobile=True)
    page.goto(offers[0])
    for model, settings in OFFERED.items():
        pick(page, model)
        for adapter in settings.get("adapters", ()):
            use(page, adapter, "0.123456789")
        submit(page)
        expect(page.locator(".state")).to_contain_text("Waiting")
        assert page.evaluate(TOO_WIDE) == []
