"""The choice of a model: what the page shows of each and what it sends. No worker draws here."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from api_contracts import GenerationClient
from examples.studio import models
from tests.studio.conftest import PHONE, studio_at
from tests.studio.drawings import catch, choose, submit
from tests.studio.test_endpoints import REQUEST, call
from tests.studio.test_page import FOCUS, TOO_WIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Page

EVIL = "<img src=x onerror=\"document.title='hit'\">"
LONG = "w" * 64
OFFERED: dict[str, Any] = {
    "default": {"adapters": ["ink", "oil"]},
    "pixels": {"classes": ["green star", "blue ring", EVIL]},
    "numbered": {"classes": 1000},
    LONG: {"adapters": [LONG]},
}
#: Fields of a picture to start from.
OF_START = {"image", "mask_image", "strength"}


@pytest.fixture(scope="module")
def offers(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of a page with four models, and its namespace."""
    namespace = f"m{uuid.uuid4().hex[:12]}"
    others = {models.VARIABLE: json.dumps(OFFERED)}
    with studio_at(redis_url, namespace, tmp_path_factory.mktemp("m"), others=others) as url:
        yield url, namespace


@pytest.fixture
def several(new_page: Callable[..., Page], offers: tuple[str, str]) -> Page:
    """The page with four models."""
    opened = new_page()
    opened.goto(offers[0])
    expect(opened.get_by_label("Model")).to_be_visible()
    return opened


def pick(page: Page, model: str) -> None:
    page.get_by_label("Model").select_option(model)


def use(page: Page, name: str, scale: str = "") -> None:
    """Choose an adapter of the shown model."""
    if page.locator("#adapters").get_attribute("open") is None:
        page.locator("#adapters > summary").click()
    page.get_by_role("checkbox", name=name).check()
    page.get_by_label(f"Scale of {name}").fill(scale)


def test_one_model_leaves_nothing_to_choose(page: Page) -> None:
    """Neither models nor adapters are shown, and the model's name is sent."""
    requests = catch(page)
    submit(page)
    expect(page.get_by_label("Model")).to_be_hidden()
    expect(page.locator("#adapters")).to_be_hidden()
    assert requests[0]["model"] == "default"
    assert not requests[0].keys() & {"class_labels", "loras"}


def test_a_class_takes_the_place_of_the_prompt(several: Page) -> None:
    """Its label is sent; what a model of pixels takes none of is neither shown nor sent."""
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
    """The backend's words beside the field, which is shown and has the focus; until the next try."""
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
        expect(several.get_by_role("checkbox", name="oil")).to_be_checked()
        expect(several.get_by_role("checkbox", name="ink")).not_to_be_checked()
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
    several: Page, offers: tuple[str, str], redis_url: str, metadata: dict[str, str]
) -> None:
    """What another program wrote fills the form as far as it can, and is never markup."""
    url, namespace = offers
    with GenerationClient(redis_url, namespace) as client:
        task = client.submit({"prompt": "a", "metadata": metadata}).task_id
    several.goto(f"{url}?task={task}")
    expect(several.locator("#asked")).not_to_be_empty()
    expect(several.get_by_role("button", name="Same again")).to_be_enabled()
    assert several.locator("img").count() == 1
    assert several.evaluate("document.querySelectorAll('[onerror], dd b').length") == 0
    assert "hit" not in several.title()


def test_the_queue_counts_every_model(
    new_page: Callable[..., Page], redis_url: str, namespace: str, tmp_path: Path
) -> None:
    """The line on the page is their sum; tasks of models that are not offered are not counted."""
    others = {models.VARIABLE: json.dumps(OFFERED)}
    with (
        studio_at(redis_url, namespace, tmp_path, others=others) as studio,
        GenerationClient(redis_url, namespace) as client,
    ):
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


NAMES = ("Model", "What shall", "Which class", "SAG")


def test_on_a_phone_no_model_is_wider_than_the_screen(
    new_page: Callable[..., Page], offers: tuple[str, str]
) -> None:
    """360 px: with each model, long names of models and adapters, and a task of each."""
    page = new_page(viewport=PHONE, has_touch=True, is_mobile=True)
    page.goto(offers[0])
    for model in OFFERED:
        pick(page, model)
        for adapter in OFFERED[model].get("adapters", ()):
            use(page, adapter, "0.123456789")
        submit(page)
        expect(page.locator(".state")).to_contain_text("Waiting")
        assert page.evaluate(TOO_WIDE) == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[]", "valid dictionary"),
        ("{", "Invalid JSON"),
        ("{}", "at least 1 item"),
        ('{"A": {}}', "A: "),
        ('{"a": {"names": []}}', "a: names: "),
        ('{"a": {"classes": -1}}', "greater than or equal to 0"),
        ('{"a": {"classes": [5]}}', "a: classes: "),
        ('{"a": {"adapters": ["../x"]}}', "a: adapters: 0: "),
        ('{"a": {"adapters": ["x", "x"]}}', "an adapter is there twice"),
        ('{"a": {"adapters": ["x"], "classes": 5}}', "takes no adapters"),
    ],
)
def test_wrong_settings_are_named(monkeypatch: pytest.MonkeyPatch, text: str, what: str) -> None:
    """The error has the variable's name, the place and what is wrong there."""
    monkeypatch.setenv(models.VARIABLE, text)
    with pytest.raises(ValueError, match=f"^{models.VARIABLE}: ") as raised:
        models.from_environment()
    assert what in str(raised.value)


def test_a_backend_with_wrong_settings_does_not_start(redis_url: str, tmp_path: Path) -> None:
    """Its log says which."""
    others = {models.VARIABLE: '{"a": 5}'}
    with (
        pytest.raises(RuntimeError, match=r"STUDIO_MODELS: a: "),
        studio_at(redis_url, "sag", tmp_path, others=others),
    ):
        pass
