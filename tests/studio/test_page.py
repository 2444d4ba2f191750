"""The page in a browser: keyboard, phone, contrast, errors, cancel, hostile texts."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.service.conftest import END_S
from tests.studio.conftest import MANY, PHONE, ask, task_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page

    from tests.conftest import Service

#: The focused element: its name, and whether its outline is visible.
FOCUS = """() => {
  const focused = document.activeElement, style = getComputedStyle(focused);
  const name = focused.labels?.[0]?.textContent ?? focused.textContent;
  return [name.trim(), style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
}"""
#: All elements that extend beyond the window's right edge.
TOO_WIDE = """() => [...document.querySelectorAll("body *")]
  .filter((each) => each.getBoundingClientRect().right > innerWidth + 0.5 || innerWidth !== 360)
  .map((each) => each.outerHTML.slice(0, 80))"""
#: Colours as red, green and blue, 0 to 255.
COLOUR = """(name) => {
  document.body.style.color = `var(${name})`;
  return getComputedStyle(document.body).color.match(/\\d+/g).map(Number);
}"""


@pytest.mark.slow
@pytest.mark.parametrize("means", ["button", "Escape"])
def test_cancel_ends_the_task(page: Page, service: Service, means: str) -> None:
    """The button and Escape cancel; the page shows the step, the task ends as `cancelled`."""
    ask(page, steps=MANY, plain=True)
    page.get_by_role("button", name="Make a picture").click()
    expect(page.locator(".picture")).to_be_visible()
    if means == "button":
        page.get_by_role("button", name="Cancel").click()
    else:
        page.keyboard.press("Escape")
    expect(page.get_by_role("status")).to_have_text("Cancelled.")
    expect(page.locator(".state")).to_have_text(re.compile(r"Cancelled at step \d+"))
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    assert service.client.handle(task_ids(page)[0]).status() == "cancelled"


def test_cancel_ends_all_four(page: Page, service: Service) -> None:
    """Cancel ends all four tasks of `Side by side`."""
    ask(page, steps=MANY, plain=True)
    page.get_by_role("button", name="Side by side").click()
    expect(page.locator(".state").nth(3)).not_to_be_empty()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status")).to_have_text("0 of 4 pictures are done.")
    statuses = service.client.status_many(task_ids(page))
    assert list(statuses.values()) == ["cancelled"] * 4


@pytest.mark.slow
def test_a_keyboard_alone_makes_a_picture(page: Page) -> None:
    """Tab reaches every control in reading order, named and with an outline; Enter submits."""
    wanted = ["What shall", "a green", "a large", "a small", "SAG scale", "Guidance", "Steps"]
    wanted += ["Seed", "Random", "Start from a picture", "More", "Make a picture", "Side by side"]
    wanted += ["SAG scale: 0, 0.5", "Previews"]
    for beginning in wanted:
        page.keyboard.press("Tab")
        name, is_seen = page.evaluate(FOCUS)
        assert name.startswith(beginning)
        assert is_seen, f"no outline around {name}"
    while page.evaluate(FOCUS)[0] != "What shall it draw?":
        page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("a large yellow star on a purple background")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("The picture is done.")
    expect(page.locator("#asked")).to_have_text("a large yellow star on a purple background")
    expect(page.locator("[data-finished]")).to_be_visible()


@pytest.mark.slow
def test_on_a_phone_nothing_is_wider_than_the_screen(
    new_page: Callable[..., Page], studio: str, service: Service
) -> None:
    """360 px: empty, running, done, four at once, failed, and with one very long word."""
    page = new_page(viewport=PHONE, has_touch=True, is_mobile=True)
    page.goto(studio)
    assert page.evaluate(TOO_WIDE) == []
    for button, count in (("Make a picture", 1), ("Side by side", 4)):
        ask(page, "redcircle" * 60, steps=15, seed=2**53 - 1, plain=True)
        page.get_by_role("button", name=button).click()
        expect(page.locator(".picture:visible")).to_have_count(count)
        assert page.evaluate(TOO_WIDE) == []
        expect(page.locator("[data-finished]")).to_have_count(count)
        assert page.evaluate(TOO_WIDE) == []
    page.goto(f"{studio}?task={refused(service)}")
    expect(page.locator(".state")).to_contain_text("Failed")
    assert page.evaluate(TOO_WIDE) == []


def refused(service: Service) -> str:
    """A task that the worker refuses."""
    handle = service.client.submit({"prompt": "a large red circle", "num_inference_steps": 2000})
    assert [*handle.events(timeout=END_S)][-1].type == "failed"
    return handle.task_id


def test_a_failure_is_shown_with_its_code_and_message(
    page: Page, studio: str, service: Service
) -> None:
    """The page of a task that another client submitted shows why it failed."""
    page.goto(f"{studio}?task={refused(service)}")
    expect(page.get_by_role("status")).to_have_text("It failed.")
    expect(page.locator(".state")).to_have_text(
        re.compile(r"Failed \(invalid_request\): .*num_inference_steps")
    )


@pytest.mark.parametrize("task_id", ["unknown", "not%20an%20id"])
def test_an_unknown_task_is_reported(page: Page, studio: str, task_id: str) -> None:
    """An id without a task, and an invalid id."""
    page.goto(f"{studio}?task={task_id}")
    expect(page.get_by_role("status")).to_have_text("There is nothing to show.")
    expect(page.locator(".state")).to_contain_text(re.compile(r"no task unknown|is not a task id"))


def test_a_refused_field_has_its_error_beside_it(page: Page) -> None:
    """An error of the backend is shown at its field, which gets the focus."""
    ask(page, steps=2)
    page.get_by_label("Seed").evaluate("field => field.removeAttribute('min')")
    page.get_by_label("Seed").fill("-5")
    page.get_by_role("button", name="Make a picture").click()
    fault = page.locator("#seed-fault")
    expect(fault).to_contain_text("greater than or equal to 0")
    expect(page.get_by_label("Seed")).to_be_focused()
    expect(page.get_by_label("Seed")).to_have_accessible_description(re.compile("greater than"))
    page.get_by_label("Seed").fill("5")
    page.get_by_role("button", name="Make a picture").click()
    expect(page.locator("[data-finished]")).to_be_visible()
    expect(fault).to_be_empty()


@pytest.mark.parametrize("place", ["prompt", "metadata", "task id"])
def test_a_hostile_text_is_only_text(page: Page, studio: str, service: Service, place: str) -> None:
    """Markup in a prompt, in metadata and in the URL is shown as text and not executed."""
    evil = "<img src=x onerror=\"document.title='hit'\">"
    if place == "prompt":
        ask(page, evil, steps=2)
        page.get_by_role("button", name="Make a picture").click()
    elif place == "metadata":
        metadata = {"prompt": evil, "sag_scale": evil, "seed": evil, "length": "1"}
        request = {"prompt": "a", "num_inference_steps": 2, "metadata": metadata}
        page.goto(f"{studio}?task={service.client.submit(request).task_id}")
    else:
        page.goto(f"{studio}?task={evil}")
        expect(page.get_by_role("status")).to_have_text("There is nothing to show.")
    if place != "task id":
        expect(page.locator("[data-finished]")).to_be_visible()
        expect(page.locator("#asked")).to_have_text(evil)
        assert page.locator(".picture").get_attribute("alt") == evil
    assert page.locator("img").count() == 1
    assert "hit" not in page.title()
    assert page.evaluate("document.querySelectorAll('[onerror]').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(new_page: Callable[..., Page], studio: str, scheme: str) -> None:
    """In both colour schemes every text has a contrast of at least 4.5, every edge of 3."""
    page = new_page(color_scheme=scheme)
    page.goto(studio)
    grounds = ("--paper", "--raised")
    for text, ground in itertools.product(("--ink", "--soft", "--fault", "--accent"), grounds):
        assert contrast(page, text, ground) >= 4.5, (text, ground)
    assert contrast(page, "--on-accent", "--accent") >= 4.5
    assert contrast(page, "--edge", "--paper") >= 3
    light = page.evaluate(COLOUR, "--paper")[0] > 127
    assert light == (scheme == "light")


def contrast(page: Page, *names: str) -> float:
    """The contrast ratio of the Web Content Accessibility Guidelines, 1 to 21."""
    dark, light = sorted(luminance(page.evaluate(COLOUR, name)) for name in names)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: list[int]) -> float:
    """The relative luminance, 0 to 1."""
    parts = [each / 255 for each in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.slow
def test_reduced_motion_is_respected(new_page: Callable[..., Page], studio: str) -> None:
    """There is no animation and no smooth scrolling with `prefers-reduced-motion`."""
    moves: dict[str, Any] = {}
    for motion in ("reduce", "no-preference"):
        page = new_page(reduced_motion=motion)
        page.goto(f"{studio}?task=unknown")
        expect(page.locator(".state")).not_to_be_empty()
        page.evaluate("document.querySelector('.card').dataset.type = 'queued'")
        frame = page.locator(".frame")
        animation = frame.evaluate("frame => getComputedStyle(frame).animationName")
        scroll = page.evaluate("getComputedStyle(document.documentElement).scrollBehavior")
        moves[motion] = (animation, scroll)
    assert moves == {"reduce": ("none", "auto"), "no-preference": ("breathe", "smooth")}
