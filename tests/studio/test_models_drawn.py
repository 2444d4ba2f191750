"""The page with a real worker of both bundled models, and with adapters: what is drawn."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from examples.studio.models import VARIABLE
from tests.engine import lora_files
from tests.engine.diffusers_alone import bare
from tests.studio.conftest import ask, bucket_settings, studio_at, task_ids
from tests.studio.drawings import submit
from tests.studio.offered_models import pick, use
from tests.studio.test_pictures import pixels
from training.pixels.classes import CLASSES, label_of, name_of
from training.pixels.dataset import SIDE_PX, is_right
from worker import embedded
from worker.config.models import PIXELS, shipped, shipped_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from playwright.sync_api import Page

    from tests.conftest import Service

pytestmark = pytest.mark.slow

#: The scale that the settings give to the adapter `oil`.
OWN = 2.0
#: The models of the page: one adapter and one class more than the worker has.
OFFERED = {
    "default": {"adapters": ["ink", "oil", "gone"]},
    PIXELS: {"classes": [*map(name_of, range(len(CLASSES))), "gone"]},
}


@pytest.fixture(scope="module")
def worker(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A worker of both models, one of them with two adapters."""
    folder, pipe = tmp_path_factory.mktemp("adapters"), bare(shipped().path)
    files = {name: folder / f"{name}.safetensors" for name in ("ink", "oil")}
    for seed, file in enumerate(files.values()):
        lora_files.save(file, lora_files.layers(pipe, seed))
    specs = {
        "default": lora_files.with_adapters(shipped(), files, oil=OWN),
        PIXELS: shipped_pixels(),
    }
    found = {
        name: each.model_dump(mode="json", exclude_defaults=True) for name, each in specs.items()
    }
    with (
        embedded.redis_server(folder) as url,
        start_service(url, models=json.dumps(found), max_models="2") as service,
    ):
        yield service


@pytest.fixture(scope="module")
def offers(worker: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the page of that worker."""
    namespace = worker.environment["SAG_NAMESPACE"]
    others = bucket_settings(worker.environment) | {VARIABLE: json.dumps(OFFERED)}
    folder = tmp_path_factory.mktemp("studio")
    with studio_at(worker.broker_url, namespace, folder, others=others) as url:
        yield url


@pytest.fixture
def both(new_page: Callable[..., Page], offers: str) -> Page:
    """The page of that worker."""
    opened = new_page()
    opened.goto(offers)
    expect(opened.get_by_label("Model")).to_be_visible()
    return opened


def shown(page: Page, number: int = 0) -> np.ndarray:
    src = page.locator(".picture").nth(number).get_attribute("src")
    assert src is not None
    return pixels(src)


def test_a_class_that_is_chosen_by_name_is_drawn(both: Page, worker: Service) -> None:
    """One and four side by side; the pictures show it, and a reload knows model and class."""
    pick(both, PIXELS)
    both.get_by_label("Which class").select_option("red circle")
    both.get_by_label("Seed").fill("5")
    for button, count in (("Make a picture", 1), ("Side by side", 4)):
        submit(both, button)
        expect(both.locator("[data-finished]")).to_have_count(count)
        label = label_of("red", "circle")
        for number in range(count):
            image = Image.fromarray(shown(both, number).astype(np.uint8))
            assert is_right(image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX), label)
        for task_id in task_ids(both):
            used = worker.client.handle(task_id).result(9).parameters
            assert (used["model"], used["class_labels"]) == (PIXELS, label)
    both.reload()
    expect(both.locator("[data-finished]")).to_have_count(4)
    expect(both.locator("#asked")).to_have_text("red circle")
    expect(both.get_by_role("img", name="red circle")).to_have_count(4)
    expect(both.get_by_label("Model")).to_have_value(PIXELS)
    expect(both.get_by_label("Which class")).to_have_value(str(label))


def test_adapters_change_the_picture(both: Page, worker: Service) -> None:
    """With the scales that are given and the settings' own, which the page shows at the end."""
    pictures = []
    for scales in ((), (("ink", "0.5"), ("oil", ""))):
        for name, scale in scales:
            use(both, name, scale)
        ask(both, steps=10, seed=3)
        submit(both)
        expect(both.locator("[data-finished]")).to_be_visible()
        pictures.append(shown(both))
    used = worker.client.handle(task_ids(both)[0]).result(9).parameters["loras"]
    assert used == [{"name": "ink", "scale": 0.5}, {"name": "oil", "scale": OWN}]
    assert np.abs(pictures[0] - pictures[1]).mean() > 5
    expect(both.locator(".facts")).to_contain_text("Adaptersink 0.5, oil 2")
    both.reload()
    expect(both.get_by_label("Scale of ink")).to_have_value("0.5")
    expect(both.get_by_label("Scale of oil")).to_have_value("")
    expect(both.get_by_label("oil", exact=True)).to_be_checked()


def test_what_the_worker_refuses_is_at_its_field(both: Page) -> None:
    """An adapter and a class that it has not; what was asked for stays in its place."""
    use(both, "ink")
    use(both, "gone")
    submit(both)
    expect(both.locator("#adapter-gone-fault")).to_contain_text("is no adapter of model 'default'")
    expect(both.locator("#asked")).to_have_text(both.get_by_label("What shall").input_value())
    expect(both.get_by_role("button", name="Same again")).to_be_enabled()
    pick(both, PIXELS)
    both.get_by_label("Which class").select_option("gone")
    submit(both)
    expect(both.locator("#class_labels-fault")).to_contain_text("class_labels ")
    expect(both.locator(".state")).to_contain_text("Failed (invalid_request)")
    expect(both.get_by_label("Which class")).not_to_be_focused()
