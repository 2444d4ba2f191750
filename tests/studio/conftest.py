"""The studio with a real worker, and a browser that shows it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from examples.studio import models
from examples.studio.input_bucket import InputBucket
from tests import fork_server
from tests.conftest import BUCKET
from tests.studio.offered_models import OFFERED
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

    from tests.conftest import Service
    from worker.config.settings import Settings

#: Longest wait for an expected state of the page, in milliseconds.
END_MS = 60_000
#: Windows, in pixels.
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 360, "height": 740}
PROMPT = "a large red circle on a white background"
#: About 4 s on an idle core where `plain`: still running when a test acts on a shown step.
MANY = 150
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def studio_at(
    broker_url: str,
    namespace: str,
    folder: Path,
    port: int | None = None,
    others: dict[str, str] | None = None,
) -> Iterator[str]:
    """Start the backend as its README does; gives the page's URL."""
    port = port or embedded.free_port()
    command = [
        sys.executable, "-m", "uvicorn", "examples.studio.app:app", "--host", embedded.LOOPBACK,
        "--port", str(port), "--timeout-graceful-shutdown", "1",
    ]  # fmt: skip
    settings = {"SAG_BROKER_URL": broker_url, "SAG_NAMESPACE": namespace, **(others or {})}
    with fork_server.running(command, folder / "studio.log", lambda: _listens(port), settings):
        yield f"http://{embedded.LOOPBACK}:{port}/"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((embedded.LOOPBACK, port)) == 0


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the shared studio's log, `studio.log`."""
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="session")
def studio(service: Service, folder: Path) -> Iterator[str]:
    """The page's URL; its worker is `service`."""
    namespace = service.environment["SAG_NAMESPACE"]
    bucket = bucket_settings(service.environment)
    with studio_at(service.broker_url, namespace, folder, others=bucket) as url:
        yield url


def bucket_settings(environment: dict[str, str]) -> dict[str, str]:
    """What a backend needs of a worker's environment for pictures to start from."""
    names = [name for name in environment if name.startswith(("SAG_S3_", "AWS_"))]
    return {name: environment[name] for name in names} | {"STUDIO_SIDE_PX": "64"}


@pytest.fixture
def environment(settings: Settings, s3: embedded.S3Server) -> dict[str, str]:
    """The backend's variables for the test's own input prefix."""
    return s3.environment | bucket_settings({
        "SAG_S3_ENDPOINT_URL": s3.endpoint_url,
        "SAG_S3_BUCKET": BUCKET,
        "SAG_S3_INPUT_PREFIX": settings.s3_input_prefix,
    })  # fmt: skip


@pytest.fixture
def bucket(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> InputBucket:
    """The same bucket in this process."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = InputBucket.from_environment()
    assert found is not None
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser with an empty profile."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed; CHROMIUM may name one")
    with chromium() as found:
        yield found


@pytest.fixture
def new_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Make a page in a context of its own; fails at the end if a page had an error."""
    faults: list[str] = []
    contexts = []

    def make(**options: object) -> Page:
        context = browser.new_context(**{"viewport": DESKTOP, **options})  # type: ignore[arg-type]
        contexts.append(context)
        context.set_default_timeout(END_MS)
        context.on("weberror", lambda error: faults.append(str(error.error)))
        return context.new_page()

    expect.set_options(timeout=END_MS)
    yield make
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def page(new_page: Callable[..., Page], studio: str) -> Page:
    """The studio on a desktop."""
    opened = new_page()
    opened.goto(studio)
    return opened


@contextmanager
def without_worker(folder: Path) -> Iterator[tuple[str, str]]:
    """A page of `OFFERED`; gives its URL, and that of a Redis which no worker reads."""
    others = {models.VARIABLE: json.dumps(OFFERED)}
    with (
        embedded.redis_server(folder) as redis_url,
        studio_at(redis_url, "sag", folder, others=others) as url,
    ):
        yield url, redis_url


@pytest.fixture(scope="module")
def offers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of a page with four models, and that of a Redis which no worker reads."""
    with without_worker(tmp_path_factory.mktemp("models")) as urls:
        yield urls


@pytest.fixture
def several(new_page: Callable[..., Page], offers: tuple[str, str]) -> Page:
    """The page with four models."""
    opened = new_page()
    opened.goto(offers[0])
    expect(opened.get_by_label("Model")).to_be_visible()
    return opened


def ask(page: Page, prompt: str = PROMPT, *, plain: bool = False, **fields: int) -> None:
    """Fill the form; `plain` is without guidance: one row of the UNet call for each step."""
    if plain:
        fields |= {"guidance_scale": 1, "sag_scale": 0}
    page.get_by_label("What shall it draw?").fill(prompt)
    for name, value in fields.items():
        page.get_by_label(name.replace("_", " ")).fill(str(value))


def task_ids(page: Page) -> list[str]:
    """The tasks in the page's URL."""
    return page.url.partition("?task=")[2].split(",")
