"""Side by side: what may differ; the fields under `More`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.studio.drawings import catch, choose, submit

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.conftest import Service

MORE = {
    "SAG blur sigma": ("sag_blur_sigma", 2.5),
    "SAG mask threshold": ("sag_mask_threshold", 0.9),
    "SAG from": ("sag_start", 0.1),
    "SAG until": ("sag_stop", 0.8),
    "Guidance rescale": ("guidance_rescale", 0.7),
}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("sag_scale", [0, 0.5, 0.75, 1]),
        ("sag_blur_sigma", [0.5, 1, 2, 4]),
        ("sag_mask_threshold", [0.5, 0.8, 1, 1.2]),
    ],
)
def test_one_field_differs_side_by_side(page: Page, field: str, values: list[float]) -> None:
    """Four requests from one seed; all else is alike."""
    requests = catch(page)
    page.get_by_label("What differs side by side").select_option(field)
    submit(page, "Side by side")
    assert [each[field] for each in requests] == values
    assert {each["metadata"].pop("compare") for each in requests} == {field}
    for request in requests:
        del request[field], request["metadata"][field]
    assert requests == [requests[0]] * 4


def test_strengths_differ_only_with_a_picture(page: Page) -> None:
    """All four start from one stored picture."""
    requests = catch(page)
    differs = page.get_by_label("What differs side by side")
    expect(differs.locator("[value=strength]")).to_be_disabled()
    choose(page)
    differs.select_option("strength")
    submit(page, "Side by side")
    assert [each["strength"] for each in requests] == [0.3, 0.5, 0.7, 0.9]
    assert len({each["image"]["s3"] for each in requests}) == 1
    page.get_by_role("button", name="Remove").click()
    expect(differs).to_have_value("sag_scale")


def test_blurs_without_sag_are_refused(page: Page) -> None:
    """Four equal pictures would say nothing; the SAG scale is named."""
    requests = catch(page)
    page.get_by_label("SAG scale").fill("0")
    page.get_by_label("What differs side by side").select_option("sag_blur_sigma")
    page.get_by_role("button", name="Side by side").click()
    expect(page.locator("#sag_scale-fault")).to_contain_text("without SAG all would be the same")
    assert requests == []


def test_the_fields_under_more_are_sent(page: Page) -> None:
    """Those that are filled in; the folded panel says which, and they are named."""
    requests = catch(page)
    submit(page)
    assert not requests[0].keys() & {field for field, _ in MORE.values()}
    page.locator("#more > summary").click()
    for label, (_, value) in MORE.items():
        page.get_by_label(label).fill(str(value))
    page.locator("#more > summary").click()
    expect(page.locator("#more-gist")).to_have_text(
        ", ".join(f"{label} {value}" for label, (_, value) in MORE.items())
    )
    submit(page)
    for field, value in MORE.values():
        assert requests[1][field] == value


def test_a_wrong_field_in_a_folded_panel_is_shown(page: Page) -> None:
    """The panel opens, for the browser's own message and for the backend's."""
    more, field = page.locator("#more > summary"), page.get_by_label("SAG mask threshold")
    more.click()
    field.fill("5")
    more.click()
    expect(field).to_be_hidden()
    page.get_by_role("button", name="Make a picture").click()
    expect(field).to_be_focused()
    field.evaluate("field => field.removeAttribute('max')")
    more.click()
    page.get_by_role("button", name="Make a picture").click()
    expect(page.locator("#sag_mask_threshold-fault")).to_contain_text(re.compile("less than"))
    expect(field).to_be_focused()


@pytest.mark.slow
def test_blurs_side_by_side_are_made(page: Page, service: Service) -> None:
    """Four cards with their names; in another tab the form says what differs."""
    page.get_by_label("Steps").fill("10")
    page.get_by_label("What differs side by side").select_option("sag_blur_sigma")
    submit(page, "Side by side")
    expect(page.locator("[data-finished]")).to_have_count(4)
    names = ["Blur 0.5", "Blur 1", "Blur 2", "Blur 4"]
    assert page.locator(".name").all_inner_texts() == names
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator(".name")).to_have_text(names)
    expect(other.get_by_label("What differs side by side")).to_have_value("sag_blur_sigma")
    expect(other.get_by_label("SAG blur sigma")).to_have_value("")
