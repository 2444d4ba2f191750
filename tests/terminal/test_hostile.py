"""Malicious records, events and servers against the terminal of a caller."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
import tracemalloc
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from api_contracts import GenerationClient, GenerationError, ImageResult
from api_contracts.events import EVENT
from api_contracts.names import Keys
from worker import embedded
from worker.cli import download, health, main, output, progress, terminal_image
from worker.cli.console import or_exit, printable
from worker.cli.terminal_image import Preview
from worker.doctor import checks
from worker.doctor.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

    from api_contracts import TaskHandle

BODY = bytes(range(256)) * 300
CONTROLS = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0))))
#: A window title by ESC and by C1, a forged line, and unbalanced markup.
EVIL = "[/x] [red]\x1b]0;owned\x07 \x9d0;owned\x9c \x00\x7f\rforged\n"
ENDS: dict[str, dict[str, Any]] = {
    "failed": {"error": {"code": EVIL, "message": EVIL, "retryable": False}},
    "succeeded": {
        "result": {
            "images": [
                {"key": f"a/{EVIL}", "url": None, "sha256": "", "bytes": 1, "width": 1,
                 "height": 1, "seed": 1, "nsfw_content_detected": None},
                {"key": "a/1", "url": f"http://x/{EVIL}", "sha256": "", "bytes": 1, "width": 1,
                 "height": 1, "seed": 1, "nsfw_content_detected": None},
            ],
            "manifest_key": "", "batch": 1, "model": "", "scheduler": "", "versions": {},
            "timings": dict.fromkeys(
                ("queued_s", "load_s", "encode_s", "denoise_s", "decode_s", "upload_s", "total_s"),
                0,
            ),
        }
    },
}  # fmt: skip


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


def test_control_characters_are_escaped() -> None:
    """A control character becomes its JSON escape, white space a space; the rest stays."""
    text = printable(CONTROLS + "aä▀[/x]\\")
    assert not set(text) & set(CONTROLS)
    assert text.startswith("\\u0000\\u0001")
    assert text.endswith("\\u009faä▀[/x]\\")
    assert printable("a\tb\nc\rd") == "a b c d"


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


@pytest.fixture
def task(redis: Redis, redis_url: str, namespace: str) -> Iterator[TaskHandle]:
    """A task without a record; the one that the test writes is removed, as it is malformed."""
    with GenerationClient(redis_url, namespace) as client:
        yield client.handle("t1")
    keys = Keys(namespace)
    redis.delete(keys.task("t1"), keys.events("t1"))


def write(redis: Redis, namespace: str, end: str) -> None:
    """Write a malicious record: every text is `EVIL`."""
    events: list[dict[str, Any]] = [
        {"type": "started", "model": EVIL, "device": EVIL, "worker": EVIL},
        {"type": "requeued", "reason": EVIL, "metadata": {"a": EVIL}},
        {"type": end, **ENDS[end]},
    ]
    keys, common = Keys(namespace), {"task_id": EVIL, "attempt": 1, "at": "2026-01-01T00:00:00Z"}
    for seq, event in enumerate(events, 1):
        redis.xadd(keys.events("t1"), {"event": json.dumps(common | {"seq": seq} | event)}, seq)
    redis.hset(keys.task("t1"), mapping={"status": end, "seq": len(events)})


def follow(task: TaskHandle, end: str, *, machine: bool) -> None:
    """Follow a task as `watch` does; the exit status is that of its end."""
    failed = pytest.raises(SystemExit, match="1") if end == "failed" else contextlib.nullcontext()
    with failed:
        output.follow([task], None, Preview.NONE, machine=machine)


def unwanted(text: str) -> set[str]:
    """Control characters other than line ends."""
    return set(text) & set(CONTROLS) - {"\n"}


@pytest.mark.parametrize("end", list(ENDS))
def test_a_pipe_gets_no_control_characters(
    redis: Redis, namespace: str, task: TaskHandle, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe gets no control characters, whatever events and record contain."""
    write(redis, namespace, end)
    follow(task, end, machine=False)
    heard = capsys.readouterr()
    assert unwanted(heard.out + heard.err) == set()
    assert "[/x] [red]\\u001b]0;owned" in heard.out + heard.err
    assert not any(line.startswith("forged") for line in (heard.out + heard.err).splitlines())


@pytest.mark.parametrize("end", list(ENDS))
def test_json_is_lossless(
    redis: Redis, namespace: str, task: TaskHandle, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json every event is exactly what was written, in printable characters."""
    write(redis, namespace, end)
    follow(task, end, machine=True)
    out = capsys.readouterr().out
    assert unwanted(out) == set()
    assert [EVENT.validate_json(line) for line in out.splitlines()] == list(task.events())


@pytest.mark.parametrize("kind", ["started", "requeued", "failed"])
def test_bars_show_the_text_of_events(kind: str) -> None:
    """Bars show the text of events literally, without markup or commands to the terminal."""
    known = {"started": {"model": "", "device": EVIL}, "requeued": {"reason": EVIL}, **ENDS}
    common = {"task_id": "t1", "seq": 1, "attempt": 1, "at": "2026-01-01T00:00:00Z", "type": kind}
    event = EVENT.validate_python(common | known[kind])
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=200, legacy_windows=False, _environ={})
    with progress._Bars(console, None) as bars:
        progress._show(event, bars, bars.add_task("t1", state=progress._state(event)))
    text = file.getvalue()
    assert "[/x] [red]\\u001b]0;owned\\u0007 \\u009d0;owned\\u009c" in text
    assert "\x1b]" not in text
    assert "\x9d" not in text


@pytest.mark.parametrize(
    ("position", "words"), [(3, "queued, 3 before it"), (0, "queued"), (None, "queued")]
)
def test_a_bar_shows_the_position_in_the_queue(position: int | None, words: str) -> None:
    """A bar shows the position in the queue if it is known and not 0."""
    event = {
        "task_id": "t1", "seq": 1, "attempt": 0, "at": "2026-01-01T00:00:00Z", "type": "queued",
        "queue": "generate.default", "position": position,
    }  # fmt: skip
    assert progress._state(EVENT.validate_python(event)).plain == words


def test_error_messages_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    """Error messages, which may repeat what a caller sent, are printable."""

    def refuse() -> None:
        raise GenerationError(EVIL)

    with pytest.raises(SystemExit):
        or_exit(refuse)
    assert unwanted(capsys.readouterr().err) == set()


def test_answers_of_workers_are_printable(
    monkeypatch: pytest.MonkeyPatch, redis: Redis, redis_url: str, namespace: str
) -> None:
    """Answers of workers and dead letters, which anyone at the broker may write, are printable."""
    answer = health.WorkerAnswer("", refusal=EVIL, device=EVIL, running=[EVIL], notices=[EVIL])
    monkeypatch.setattr(health, "all_workers", lambda _: {EVIL: answer})
    monkeypatch.setattr(health, "host_workers", lambda _: {EVIL: health.WorkerHealth(EVIL, [EVIL])})
    monkeypatch.setattr(checks, "run_checks", lambda _: [Finding(EVIL, ok=False, found=EVIL)])
    monkeypatch.setenv("SAG_BROKER_URL", redis_url)
    monkeypatch.setenv("SAG_NAMESPACE", namespace)
    redis.xadd(Keys(namespace).dead, {"task_id": EVIL, "reason": EVIL})
    for command in (["queue"], ["health"], ["doctor"], ["dead", "list"]):
        done = CliRunner().invoke(main.app, command)
        assert "owned" in done.output, done.output
        assert unwanted(done.output) - {"\t"} == set()
    redis.delete(Keys(namespace).dead)
