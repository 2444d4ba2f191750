"""The page in a browser with a real worker: from a prompt to pictures."""

from __future__ import annotations

import base64
import io
import re
import urllib.request
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.studio.conftest import END_MS, MANY, ask, task_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page

    from tests.conftest import Service

#: Records every picture that a card shows.
WATCH = """
window.shown = [];
new MutationObserver((changes) => {
  for (const { target } of changes)
    if (target.className.startsWith("picture")) window.shown.push(target.src);
}).observe(document, { attributes: true, attributeFilter: ["src"], subtree: true });
"""
#: Makes the decoding of every picture take a second.
SLOW = """
const { decode } = Image.prototype;
Image.prototype.decode = async function () {
  await new Promise((resolve) => setTimeout(resolve, 1000));
  return decode.call(this);
};
"""


def pixels(url: str) -> np.ndarray:
    """The picture at a URL, 64 px square, in 0 … 255."""
    if url.startswith("data:"):
        data = base64.b64decode(url.partition(",")[2])
    else:
        with urllib.request.urlopen(url, timeout=30) as reply:
            data = reply.read()
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((64, 64)), dtype=float)


@pytest.mark.slow
def test_a_picture_appears_after_its_previews_sharpened(
    new_page: Callable[..., Page], studio: str
) -> None:
    """Previews converge to the picture, which is loaded from S3 and shown with its parameters."""
    page = new_page()
    page.add_init_script(WATCH)
    page.goto(studio)
    ask(page, steps=25, seed=7)
    page.get_by_role("button", name="Make a picture").click()
    picture = page.get_by_role("img", name="a large red circle on a white background")
    expect(picture).to_have_attribute("src", re.compile("^http"))
    *previews, finished = page.evaluate("shown")
    assert len(set(previews)) >= 2
    assert all(url.startswith("data:image/jpeg") for url in previews)
    first, last, end = pixels(previews[0]), pixels(previews[-1]), pixels(finished)
    assert np.abs(last - end).mean() < np.abs(first - end).mean() / 2
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 64]
    facts = page.locator(".facts")
    for fact in ("Seed7", "Steps25", "Guidance3", "Samplerddim", "tasks a step", "Denoised"):
        expect(facts).to_contain_text(fact)
    expect(page.get_by_role("progressbar")).to_have_attribute("value", "1")
    expect(page.get_by_label("Seed")).to_have_value("7")
    expect(page.get_by_role("status")).to_have_text("The picture is done.")


@pytest.mark.slow
def test_previews_are_shown_where_decoding_is_slow(
    new_page: Callable[..., Page], studio: str
) -> None:
    """A browser that is slower than the steps shows older previews rather than none."""
    page = new_page()
    page.add_init_script(SLOW)
    page.goto(studio)
    ask(page, steps=MANY, plain=True)
    page.get_by_role("button", name="Make a picture").click()
    expect(page.locator(".picture")).to_be_visible()
    expect(page.locator(".state")).to_contain_text(f"of {MANY}")


@pytest.mark.slow
def test_a_reload_continues_with_the_same_task(page: Page, service: Service) -> None:
    """After a reload the page follows the same task, and the form has the same request."""
    ask(page, "a green ring on a black background", steps=MANY, plain=True)
    page.get_by_role("button", name="Make a picture").click()
    expect(page.locator(".state")).to_contain_text(f"of {MANY}")
    before, address = step(page), page.url
    page.reload()
    expect(page.locator(".state")).to_contain_text(f"of {MANY}")
    # The page reads the events again from the first one on, and soon has caught up.
    page.wait_for_function(
        r"""before => Number(
            (document.querySelector('.state').textContent.match(/Step (\d+)/) || [0, -1])[1]
        ) >= before""",
        arg=before,
    )
    assert step(page) < MANY
    expect(page.get_by_label("What shall it draw?")).to_have_value(
        "a green ring on a black background"
    )
    expect(page.get_by_label("Steps")).to_have_value(str(MANY))
    expect(page.get_by_role("status")).to_have_text("The picture is done.")
    assert page.url == address
    kinds = [event.type for event in service.client.handle(task_ids(page)[0]).events(timeout=9)]
    assert kinds.count("queued") == kinds.count("started") == 1


def step(page: Page) -> int:
    """The step that the only card shows."""
    found = re.search(r"Step (\d+)", page.locator(".state").inner_text())
    assert found is not None
    return int(found[1])


@pytest.mark.slow
def test_two_tabs_see_the_same(page: Page) -> None:
    """A tab opened in the middle ends with the same picture, parameters and previews."""
    ask(page, steps=MANY, plain=True)
    page.get_by_role("button", name="Make a picture").click()
    expect(page.locator(".state")).to_contain_text(f"of {MANY}")
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator(".state")).to_contain_text(f"of {MANY}")
    ends = []
    for tab in (page, other):
        expect(tab.get_by_role("status")).to_have_text("The picture is done.")
        expect(tab.locator("[data-finished]")).to_be_visible()
        places = tab.get_by_label("Look back").get_attribute("max")
        assert places is not None
        assert int(places) >= 20
        src = tab.locator(".picture").get_attribute("src")
        ends.append((src, tab.locator(".about").inner_text(), places))
    assert ends[0] == ends[1]


@pytest.mark.slow
def test_side_by_side_draws_four_scales_from_one_seed(page: Page, service: Service) -> None:
    """Four cards, four tasks: SAG scale 0, 0.5, 0.75 and 1, all else alike, four pictures."""
    ask(page, "a green ring left of a blue square on a black background", steps=10)
    page.get_by_role("button", name="Side by side").click()
    expect(page.get_by_role("status")).to_have_text("4 of 4 pictures are done.")
    expect(page.locator("[data-finished]")).to_have_count(4)
    assert page.locator(".name").all_inner_texts() == ["SAG 0", "SAG 0.5", "SAG 0.75", "SAG 1"]
    results = [service.client.handle(each).result(timeout=9) for each in task_ids(page)]
    assert [each.parameters["sag_scale"] for each in results] == [0, 0.5, 0.75, 1]
    assert len({each.images[0].seed for each in results}) == 1
    assert len({each.images[0].sha256 for each in results}) == 4
    seed = results[0].images[0].seed
    expect(page.locator(".seed dd")).to_have_text([str(seed)] * 4)
    tops = [card.bounding_box() for card in page.locator(".picture").all()]
    assert len({box["y"] for box in tops if box}) == 1  # next to each other


@pytest.mark.slow
def test_looking_back_shows_earlier_steps(page: Page) -> None:
    """The slider's first position is the first preview, its last the picture."""
    ask(page, steps=10)
    page.get_by_role("button", name="Make a picture").click()
    expect(page.locator("[data-finished]")).to_be_visible()
    slider, picture = page.get_by_label("Look back"), page.locator(".picture")
    slider.focus()
    slider.press("Home")
    expect(picture).to_have_attribute("src", re.compile("^data:"))
    expect(page.locator("#look-value")).to_have_text("step 1")
    slider.press("End")
    expect(picture).to_have_attribute("src", re.compile("^http"))


@pytest.mark.slow
def test_a_seed_is_new_each_time_or_the_same_again(page: Page) -> None:
    """An empty seed is random each time; `Same again` fills in all fields, `Random` clears it."""
    seeds = []
    again, field = page.get_by_role("button", name="Same again"), page.get_by_label("Seed")
    expect(again).to_be_disabled()
    for _ in range(2):
        ask(page, steps=2)
        seeds.append(seed_of_next(page))
    assert seeds[0] != seeds[1]
    ask(page, "something else", steps=3)
    again.click()
    expect(field).to_have_value(seeds[1])
    expect(page.get_by_label("Steps")).to_have_value("2")
    expect(page.get_by_label("What shall it draw?")).to_have_value(re.compile("large red"))
    assert seed_of_next(page) == seeds[1]
    page.get_by_role("button", name="Random").click()
    expect(field).to_have_value("")


def seed_of_next(page: Page) -> str:
    """Make a picture; gives the seed that the page shows."""
    address = page.url
    page.get_by_role("button", name="Make a picture").click()
    page.wait_for_url(lambda url: url != address, timeout=END_MS)
    expect(page.locator("[data-finished]")).to_be_visible()
    return page.locator(".seed dd").inner_text()


@pytest.mark.slow
def test_going_back_shows_the_previous_picture(page: Page) -> None:
    """Each submission is an entry in the browser's history."""
    prompts = ["a large red circle on a white background", "a green ring on a black background"]
    for prompt in prompts:
        ask(page, prompt, steps=2)
        seed_of_next(page)
    expect(page.locator("#asked")).to_have_text(prompts[1])
    page.go_back()
    expect(page.locator("#asked")).to_have_text(prompts[0])
    expect(page.get_by_label("What shall it draw?")).to_have_value(prompts[0])
    expect(page.locator("[data-finished]")).to_be_visible()
