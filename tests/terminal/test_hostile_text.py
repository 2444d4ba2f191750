"""Malicious text in records, events and answers against the terminal of a caller."""

from __future__ import annotations

import contextlib
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from api_contracts import GenerationClient, GenerationError
from api_contracts.events import EVENT
from api_contracts.names import Keys
from tests.terminal.control_characters import CONTROLS, EVIL, unwanted
from worker.cli import health, main, output, progress
from worker.cli.console import or_exit, printable
from worker.cli.terminal_image import Preview
from worker.doctor import checks
from worker.doctor.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from api_contracts import TaskHandle

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


def test_control_characters_are_escaped() -> None:
    """A control character becomes its JSON escape, white space a space; the rest stays."""
    text = printable(CONTROLS + "aä▀[/x]\\")
    assert not set(text) & set(CONTROLS)
    assert text.startswith("\\u0000\\u0001")
    assert text.endswith("\\u009faä▀[/x]\\")
    assert printable("a\tb\nc\rd") == "a b c d"


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
