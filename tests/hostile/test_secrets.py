"""Secrets and prompts appear in no log, command output or exception."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from api_contracts import GenerationClient, GenerationFailed, ServiceUnavailable
from api_contracts.names import MAX_MESSAGE_BYTES
from tests.fuzz.hostile_messages import calls, message
from tests.fuzz.pipeline import Pipeline
from tests.hostile.guarded import guarded, running, until, wheel_redis

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service
    from tests.hostile.guarded import Guarded
    from worker.embedded import S3Server

END_S = 120.0
PROMPT = "a-prompt-that-nobody-else-has"
CALL = {"request": {"prompt": PROMPT}}
BAD_MESSAGES = (
    PROMPT.encode() + b"\xff", b'"' + PROMPT.encode() + b"\xff", PROMPT.encode(),
    json.dumps({"body": PROMPT}).encode(),
    json.dumps(message("no/id", calls(CALL))).encode(),
    json.dumps(message("spoiled", calls(CALL)[:-3])).encode(),
    json.dumps(message("bytes", json.dumps([[PROMPT], CALL, {}]))).encode(),
    b"{" + PROMPT.encode() * (MAX_MESSAGE_BYTES // len(PROMPT) + 1),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of this module's Redis, so that it can restart."""
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def output(
    folder: Path,
    s3: S3Server,
    start_service: Callable[..., AbstractContextManager[Service]],
) -> tuple[str, list[str]]:
    """All output of a worker and of commands through failures, and the secrets in use."""
    said: list[str] = []
    with guarded(folder, wheel_redis()) as server:
        options = {"namespace": "sag", "slots": "2", "lease_s": "2"}
        with start_service(server.url("worker"), **options) as service:
            _good_and_bad(server, service)
            said += [_command(service, name) for name in ("doctor", "health")]
            wrong = server.url("worker").replace("@", "-wrong@")
            said += [_command(service, name, wrong) for name in ("doctor", "health")]
            said += [_command(service, "doctor", AWS_SECRET_ACCESS_KEY="wrong" * 8)]
            _restart(folder, server, service)
            said += [_command(service, name) for name in ("doctor", "health")]
        said.append(service.log.read_text())
    secret = [*server.passwords.values(), s3.secret_key, "X-Amz-Signature", "wrongwrong"]
    return "\n".join(said), secret


def _good_and_bad(server: Guarded, service: Service) -> None:
    """Submit tasks that succeed, that are refused at every stage, and unreadable messages."""
    with GenerationClient(server.url("producer")) as client:
        wanted = {"prompt": PROMPT, "num_inference_steps": 1, "metadata": {"m": PROMPT}}
        result = client.submit(wanted).result(END_S)
        assert "X-Amz-Signature" in str(result.images[0].url)
        for refused in (
            {"prompt": PROMPT, "num_inference_steps": 999},
            {"prompt": PROMPT, "scheduler": "nope"},
            {"prompt": PROMPT, "latents": {"s3": "absent.safetensors"}},
        ):
            with pytest.raises(GenerationFailed):
                client.submit(refused).result(END_S)
    broker, backend = server.url("producer"), server.url("watcher")
    stranger = Celery("stranger", broker=broker, backend=backend)
    for sent in ({"prompt": PROMPT, "num_inference_steps": 1}, {"prompt": [PROMPT, 5]}):
        answer = stranger.send_task(
            "sag.generate", kwargs={"request": sent}, queue="generate.default", priority=5
        )
        answer.get(timeout=END_S, propagate=False)
    with server.connect("producer") as redis:
        redis.lpush("generate.default", *BAD_MESSAGES)
        redis.lpush("generate.default", json.dumps(message("last", calls(CALL | {"x": 1}))))
        until(lambda: redis.hget("sag:{last}:task", "status") == b"failed")


def _restart(folder: Path, server: Guarded, service: Service) -> None:
    """Stop Redis until the worker logs it, restart it, and have a task served."""
    with server.connect("operator") as redis:
        redis.shutdown(nosave=True)
    size = service.log.stat().st_size
    until(lambda: service.log.stat().st_size > size + 500)
    with (
        running(folder, wheel_redis(), server),
        GenerationClient(server.url("producer")) as client,
    ):
        wanted = {"prompt": PROMPT, "num_inference_steps": 1}
        assert client.submit(wanted).result(END_S).images
        assert server.denials() == []
    with GenerationClient(server.url("producer")) as client:
        with pytest.raises(ServiceUnavailable) as away:
            client.submit(wanted)
        assert server.passwords["producer"] not in f"{away.value!r}{away.value.__cause__!r}"


def _command(service: Service, name: str, url: str = "", **environment: str) -> str:
    asked = subprocess.run(
        [sys.executable, "-m", "worker", name],
        env={**service.environment, "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path),
             **({"SAG_BROKER_URL": url} if url else {}), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return asked.stdout + asked.stderr


@pytest.mark.slow
def test_no_secret_is_shown(output: tuple[str, list[str]]) -> None:
    """No output contains passwords, keys or signatures."""
    said, secrets = output
    for secret in secrets:
        assert secret not in said, [line for line in said.splitlines() if secret in line][:2]
    assert "ready." in said
    assert re.search("(?i)connection refused", said)
    assert "may not scan keys" in said
    assert "invalid username-password pair" in said


@pytest.mark.slow
def test_no_prompt_is_shown(output: tuple[str, list[str]]) -> None:
    """No output contains a prompt."""
    said, _ = output
    assert PROMPT not in said, [line for line in said.splitlines() if PROMPT in line][:2]
    assert said.count("rejected a message (") == 6
    assert said.count("too_large") == 1


@pytest.mark.slow
def test_prompts_are_logged_when_enabled(
    redis_url: str, start_service: Callable[..., AbstractContextManager[Service]]
) -> None:
    """`SAG_LOG_PROMPTS` logs each prompt once, on one line."""
    wanted = {"prompt": f"{PROMPT}\nsag-worker: forged", "deadline_s": 1e-9}
    models = json.dumps({"default": {"path": "/nowhere"}, "logs": {"path": "/nowhere"}})
    with start_service(redis_url, log_prompts="true", models=models) as service:
        with pytest.raises(GenerationFailed):
            service.client.submit(wanted | {"model": "logs"}).result(END_S)
        lines = [line for line in service.log.read_text().splitlines() if PROMPT in line]
    assert len(lines) == 1
    assert "forged" in lines[0]


def test_no_prompt_of_a_bad_message_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The worker's code logs no prompt of messages that are unreadable, refused or accepted."""
    pipeline = Pipeline()
    made = [CALL, CALL | {"x": 1}, {"request": {"prompt": [PROMPT, 5]}}]
    answered = [json.dumps(message("t", calls(each))).encode() for each in made]
    for entry in (*BAD_MESSAGES, *answered):
        pipeline.take(entry)
    assert caplog.text.count("rejected a message (") == 5
    assert "too_large" in caplog.text
    assert PROMPT not in caplog.text


@pytest.mark.parametrize(
    "url",
    ["redis://worker:hu/sh@127.0.0.1:6379/0", "redis://:hush@127.0.0.1:hush/0",
     "rediss://u:hush@[::1/0", "redis://u:hush@h:99999999/0", "http://u:hush@h"],
)  # fmt: skip
def test_a_wrong_url_is_not_repeated(url: str) -> None:
    """The client's error for an invalid URL does not contain its password."""
    with pytest.raises(ValueError, match="Redis URL") as wrong:
        GenerationClient(url)
    assert not re.search("hu|sh", f"{wrong.value!r}{wrong.value.__cause__!r}")
    assert wrong.value.__suppress_context__ or wrong.value.__context__ is None
