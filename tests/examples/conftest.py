"""Runs the examples as processes, and sends requests to those that listen."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from tests import fork_server
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from email.message import Message

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROMPT = "a large red circle on a white background"
PNG = b"\x89PNG\r\n\x1a\n"
#: Longest wait for one answer, in seconds.
ANSWER_S = 90.0
#: More steps than any test waits for.
LONG = {"prompt": PROMPT, "num_inference_steps": 150, "num_images_per_prompt": 4}


@dataclass(frozen=True)
class Answer:
    """A server's answer."""

    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def ask(url: str, method: str = "GET", body: object = None, **headers: str) -> Answer:
    """Send a request with `body` as JSON; underscores in names of headers become hyphens."""
    data = None if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = Request(url, data, {"Content-Type": "application/json", **named}, method=method)
    try:
        with urlopen(request, timeout=ANSWER_S) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


def wheres(answer: Answer) -> set[str]:
    """The fields that a refusal names."""
    return {fault["where"] for fault in answer.json["detail"]}


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python to its end."""
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True, text=True, check=False, timeout=ANSWER_S, **options,
    )  # fmt: skip


@pytest.fixture(scope="session")
def start_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., AbstractContextManager[str]]:
    """Start an example that listens on the free port `{port}` of its command; gives its URL."""

    @contextmanager
    def start(*command: str, **environment: str) -> Iterator[str]:
        url = f"http://{embedded.LOOPBACK}:{(port := embedded.free_port())}"
        line = [sys.executable, *(part.format(port=port) for part in command)]
        log = tmp_path_factory.mktemp("example") / "example.log"
        with fork_server.running(line, log, lambda: answers(url), environment):
            yield url

    return start


def answers(url: str) -> bool:
    """Whether a server answers there, with whatever status."""
    try:
        return ask(url).status > 0
    except URLError:
        return False
