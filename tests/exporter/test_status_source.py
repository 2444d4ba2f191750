"""How often Redis is read, and what is served of a reading that failed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.exporter.conftest import pool_settings
from tests.exporter.test_server import samples
from worker import embedded
from worker.exporter.pool_metrics import REUSE_S, StatusSource, StatusUnknownError
from worker.exporter.pool_status import PoolReader
from worker.exporter.server import application

if TYPE_CHECKING:
    from pathlib import Path

    from worker.config.settings import Settings


def test_numbers_end_and_return_with_redis(tmp_path: Path, namespace: str) -> None:
    """A reading fails while Redis is away, and has numbers again once Redis is back."""
    port = embedded.free_port()
    settings = pool_settings(f"redis://127.0.0.1:{port}/0", namespace)
    clock = Clock()
    source = StatusSource(PoolReader(settings).read, clock)
    for _ in range(2):
        with embedded.redis_server(tmp_path, port):
            assert source.get().waiting == 0
        clock.now_s += REUSE_S
        with pytest.raises(StatusUnknownError, match="Redis can't be read"):
            source.get()
        clock.now_s += REUSE_S


class Clock:
    """A clock that a test moves on."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s


def test_many_requests_are_one_reading(settings: Settings) -> None:
    """A reading is used for a second, a failed one as well."""
    read, clock, calls = PoolReader(settings).read, Clock(), [0]

    def counted() -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise RedisConnectionError("away")
        return read()

    source = StatusSource(counted, clock)
    assert source.get() is source.get()
    clock.now_s += REUSE_S
    for _ in range(2):
        with pytest.raises(StatusUnknownError, match="Redis can't be read"):
            source.get()
    clock.now_s += REUSE_S
    assert source.get().waiting == 0
    assert calls == [3]


def test_a_bug_is_no_empty_queue(caplog: pytest.LogCaptureFixture) -> None:
    """Any error of a reading gives 503 and no numbers; its traceback is logged once."""
    calls: list[int] = []

    def broken() -> Any:
        calls.append(1)
        raise ValueError("could not convert")

    clock = Clock()
    serve = application(StatusSource(broken, clock))
    for _ in range(2):
        code, text = answer(serve, "/status")
        assert code.startswith("503")
        assert "bug in the exporter (ValueError)" in json.loads(text)["error"]
        code, text = answer(serve, "/metrics")
        assert code.startswith("200")
        found = samples(text)
        assert found["sag_exporter_redis_up", ()] == 0
        assert not [name for name, _ in found if name.startswith("sag_pool_")]
        clock.now_s += REUSE_S
    assert len(calls) == 2
    assert caplog.text.count("Traceback") == 1


def answer(serve: Any, path: str) -> tuple[str, str]:
    """Status and body of a WSGI application."""
    codes: list[str] = []
    environ = {"PATH_INFO": path, "REQUEST_METHOD": "GET", "QUERY_STRING": ""}
    body = b"".join(serve(environ, lambda code, _: codes.append(code)))
    return codes[0], body.decode()
