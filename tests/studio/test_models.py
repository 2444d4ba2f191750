"""The choice of a model: what the page sends of each, and where its faults are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.studio.drawings import catch, choose, submit
from tests.studio.offered_models import LONG, pick, use

if TYPE_CHECKING:
    from playwright.sync_api import Page

#: Fields of a picture to start from.
OF_START = {"image", "mask_image", "strength"}


def test_one_model_leaves_nothing_to_choose(page: Page) -> None:
    """Neither models nor adapters are shown, and the model's name is sent."""
    requests = catch(page)
    submit(page)
    expect(page.get_by_label("Model")).to_be_hidden()
    expect(page.locator("#adapters")).to_be_hidden()
    assert requests[0]["model"] == "default"
    assert not requests[0].keys() & {"class_labels", "loras"}


def test_a_class_takes_the_place_of_the_prompt(several: Page) -> None:
    """Its label is sent; what a pixel-space model takes none of is neither shown nor sent."""
    requests = catch(several)
    choose(several)
    several.get_by_label("Longest side").fill("201")  # invalid, which has no effect while hidden
    pick(several, "pixels")
    field = several.get_by_label("Which class")
    for hidden in ("#prompt", "#start", "#adapters"):
        expect(several.locator(hidden)).to_be_hidden()
    expect(several.locator("#differs [value=strength]")).to_be_disabled()
    for name, label in (("blue ring", 1), ("No class", None)):
        field.select_option(name)
        submit(several)
        request = requests.pop()
        assert (request["model"], request["class_labels"]) == ("pixels", label)
        assert not request.keys() & (OF_START | {"prompt", "loras"})
    pick(several, "default")
    expect(several.locator("#canvas")).to_be_visible()
    several.get_by_label("Longest side").fill("200")
    expect(several.locator("#differs [value=strength]")).to_be_enabled()
    pick(several, "pixels")
    expect(field).to_have_value("")


def test_classes_without_names_are_numbers(several: Page) -> None:
    """From 0 to one less than there are; none is no class."""
    requests = catch(several)
    pick(several, "numbered")
    field = several.get_by_label("Which class")
    for text, label in (("999", 999), ("", None)):
        field.fill(text)
        submit(several)
        assert requests.pop()["class_labels"] == label
    field.fill("1000")
    several.get_by_role("button", name="Make a picture").click()
    expect(field).to_be_focused()
    assert requests == []


def test_adapters_are_sent_with_their_scales(several: Page) -> None:
    """An empty scale is not sent; the folded panel says what is chosen; each model has its own."""
    requests = catch(several)
    submit(several)
    assert "loras" not in requests.pop()
    use(several, "ink", "-0.5")
    use(several, "oil")
    several.locator("#adapters > summary").click()
    expect(several.locator("#adapters-gist")).to_have_text("ink -0.5, oil")
    submit(several, "Side by side")
    used = [{"name": "ink", "scale": -0.5}, {"name": "oil"}]
    assert [each["loras"] for each in requests] == [used] * 4
    requests.clear()
    pick(several, LONG)
    submit(several)
    pick(several, "default")
    submit(several)
    assert [each.get("loras") for each in requests] == [None, used]


def test_faults_are_at_the_class_and_at_the_adapter(several: Page) -> None:
    """The backend's words beside the field, which is shown and has the focus, for this try."""
    use(several, "ink")
    use(several, "oil", "1")
    scale = several.get_by_label("Scale of oil")
    scale.evaluate("field => field.removeAttribute('max')")
    scale.fill("99")
    several.locator("#adapters > summary").click()
    several.get_by_role("button", name="Side by side").click()
    fault = several.locator("#adapter-oil-fault")
    expect(fault).to_contain_text("loras Input should be less than or equal to 10")
    expect(scale).to_be_focused()
    expect(scale).to_have_accessible_description(fault.inner_text())
    pick(several, "numbered")
    label = several.get_by_label("Which class")
    label.evaluate("field => field.removeAttribute('min')")
    label.fill("-5")
    several.get_by_role("button", name="Make a picture").click()
    expect(several.locator("#class_labels-fault")).to_contain_text("greater than or equal to 0")
    expect(label).to_be_focused()
    pick(several, "default")
    expect(fault).to_be_empty()


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ("loras[1].name", "adapter-oil"), ("loras", "loras"), ("model", "model"),
        ("mask_image", "prompt"), ("[2].class_labels", "prompt"),
    ],
)  # fmt: skip
def test_every_fault_is_seen(several: Page, where: str, place: str) -> None:
    """That of a field which is not shown is at the prompt."""
    fault = {"where": where, "what": "is wrong", "limit": "right"}
    several.route("**/tasks", lambda route: route.fulfill(status=422, json={"faults": [fault]}))
    use(several, "ink")
    use(several, "oil")
    several.get_by_role("button", name="Make a picture").click()
    expect(several.locator(f"#{place}-fault")).to_be_visible()
    expect(several.locator(f"#{place}-fault")).to_contain_text("is wrong")
