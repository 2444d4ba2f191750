"""The studio over a real worker, and a browser to look at it with."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

    from tests.conftest import Service

#: Longest wait for anything that must come, in milliseconds.
END_MS = 60_000
#: Windows, in pixels.
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 360, "height": 740}
PROMPT = "a large red circle on a white background"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def studio_at(
    broker_url: str, namespace: str, folder: Path, port: int | None = None
) -> Iterator[str]:
    """The backend by itself, as its README starts it; gives the page's URL."""
    port = port or embedded.free_port()
    command = [
        sys.executable, "-m", "uvicorn", "examples.studio.app:app", "--host", embedded.LOOPBACK,
        "--port", str(port), "--timeout-graceful-shutdown", "1",
    ]  # fmt: skip
    settings = {"SAG_BROKER_URL": broker_url, "SAG_NAMESPACE": namespace}
    with embedded.running(command, folder / "studio.log", lambda: _listens(port), settings):
        yield f"http://{embedded.LOOPBACK}:{port}/"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((embedded.LOOPBACK, port)) == 0


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shared studio's log is, `studio.log`."""
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="session")
def studio(service: Service, folder: Path) -> Iterator[str]:
    """The page's URL; the worker is the session's."""
    namespace = service.environment["SAG_NAMESPACE"]
    with studio_at(service.broker_url, namespace, folder) as url:
        yield url


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
        pytest.skip("no Chromium here; CHROMIUM says where one is")
    with chromium() as found:
        yield found


@pytest.fixture
def new_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Make a page in a context of its own; at the end none has had an error."""
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


def ask(page: Page, prompt: str = PROMPT, **fields: int) -> None:
    """Fill the form."""
    page.get_by_label("What shall it draw?").fill(prompt)
    for name, value in fields.items():
        page.get_by_label(name.capitalize()).fill(str(value))


def task_ids(page: Page) -> list[str]:
    """The tasks in the page's URL."""
    return page.url.partition("?task=")[2].split(",")
