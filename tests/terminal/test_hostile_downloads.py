"""Malicious records and servers against the download of a picture."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import tracemalloc
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import GenerationError, ImageResult
from tests.terminal.control_characters import CONTROLS
from worker import embedded
from worker.cli import download, output, terminal_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BODY = bytes(range(256)) * 300
#: The beginning of an endless answer, by its path.
DRIPS = {
    "/drip-body": b"HTTP/1.0 200 OK\r\n\r\n",
    "/drip-header": b"HTTP/1.0 200 OK\r\nX-Y: ",
    "/drip-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
}


class Web(BaseHTTPRequestHandler):
    """Serves `BODY`, redirects `/away`, and records the paths of requests."""

    def __init__(self, asked: list[str], *arguments: Any) -> None:
        self.asked = asked
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer any path."""
        self.asked.append(self.path)
        if self.path.startswith("/drip"):
            with contextlib.suppress(OSError):
                self.wfile.write(DRIPS[self.path])
                while not self.server.dry.wait(0.01):  # type: ignore[attr-defined]
                    self.wfile.write(b"x")
            return
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("Location", "/secret")
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def asked() -> list[str]:
    """The paths of the requests."""
    return []


@pytest.fixture
def web(asked: list[str]) -> Iterator[str]:
    """The URL of a server, as a record has it."""
    with ThreadingHTTPServer((embedded.LOOPBACK, 0), partial(Web, asked)) as server:
        server.dry = threading.Event()  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        yield f"http://{embedded.LOOPBACK}:{server.server_port}"
        server.dry.set()  # type: ignore[attr-defined]
        server.shutdown()


def named(url: str | None, size_bytes: int = len(BODY), key: str = "a/0.png") -> ImageResult:
    return ImageResult(
        key=key, url=url, sha256=hashlib.sha256(BODY).hexdigest(), bytes=size_bytes, width=8,
        height=8, seed=1, nsfw_content_detected=None,
    )  # fmt: skip


def test_a_download_costs_what_is_received(web: str) -> None:
    """However many bytes a record claims, memory is taken for the received ones only."""
    tracemalloc.start()
    try:
        assert download.fetch(named(f"{web}/x", 10**12)) == BODY
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_no_more_is_read_than_the_record_claims(web: str) -> None:
    """A download is refused at the first byte beyond the size in the record."""
    with pytest.raises(GenerationError, match="differs from what the worker stored"):
        download.fetch(named(f"{web}/x", len(BODY) - 2))


@pytest.mark.parametrize("path", DRIPS)
def test_a_dripping_download_ends_in_time(web: str, path: str) -> None:
    """The time limit of a download is that of the whole answer, not of each read."""
    with pytest.raises(GenerationError, match=r"no answer within 0\.2 s"):
        download.fetch(named(f"{web}{path}", 10**6), timeout_s=0.2)


def test_a_redirect_is_not_followed(web: str, asked: list[str]) -> None:
    """The server of a record cannot send the command elsewhere."""
    with pytest.raises(GenerationError, match="302"):
        download.fetch(named(f"{web}/away"))
    assert asked == ["/away"]


@pytest.mark.parametrize("url", ["http://[", "http://x:y/", "http://127.0.0.1:1/ä", "http://\n"])
def test_an_invalid_url_is_reported(url: str) -> None:
    """An invalid URL in a record is reported and does not crash the command."""
    with pytest.raises(GenerationError, match="could not fetch"):
        download.fetch(named(url))


@pytest.mark.parametrize("saved", [True, False])
def test_a_file_that_is_too_large_is_not_drawn(
    web: str, asked: list[str], tmp_path: Path, saved: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is too large by its record is not drawn, and not requested."""
    (tmp_path / "x.png").write_bytes(b"")
    path = tmp_path / "x.png" if saved else None
    output._show(named(f"{web}/x", terminal_image.MAX_BYTES + 1), path)
    assert asked == []
    assert "at most 32 MiB" in capsys.readouterr().err


def test_a_key_cannot_leave_the_folder(web: str, tmp_path: Path) -> None:
    """An image is saved whatever its key contains, and its name can be printed."""
    path = download.save(named(web, key=f"../a/{CONTROLS[:34]}\x9d.png"), "task", tmp_path)
    assert path.read_bytes() == BODY
    assert [*tmp_path.iterdir()] == [path]
    assert not set(path.name) & set(CONTROLS)


def test_a_name_that_is_too_long_is_reported(web: str, tmp_path: Path) -> None:
    """A name that is too long is reported, as any file that cannot be written."""
    with pytest.raises(GenerationError, match="could not write"):
        download.save(named(web, key="x" * 1000), "task", tmp_path)
