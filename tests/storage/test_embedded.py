"""The embedded servers are ready when a file can be stored, and are always stopped."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError

from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_a_port_is_taken_by_nobody_else() -> None:
    """A used port is passed over, and no outgoing connection can be given a port that is chosen."""
    port = embedded.free_port()
    with socket.create_server((embedded.LOOPBACK, port)):
        assert not embedded._is_free(port)
    assert embedded._is_free(port)
    chosen = embedded.free_ports(20)
    assert len(set(chosen)) == 20
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if given.exists():  # Linux
        first, last = map(int, given.read_text().split())
        assert not any(first <= each <= last for each in chosen)


def test_s3_can_store_when_a_file_was_stored(tmp_path: Path, s3: embedded.S3Server) -> None:
    """A server that has the bucket but no room for a file yet is not ready; it says why."""
    client = boto3.client("s3", endpoint_url=s3.endpoint_url)
    client.put_object, real = refuse_put, client.put_object
    assert not embedded._can_store(client, "early", tmp_path)
    assert "InternalError" in (tmp_path / "s3.refusal").read_text()
    client.put_object = real
    assert embedded._can_store(client, "early", tmp_path)


def refuse_put(**_: Any) -> None:
    raise ClientError({"Error": {"Code": "InternalError"}}, "PutObject")


@pytest.mark.slow  # it starts a server; the check above is its fast form
def test_s3_is_ready_when_a_file_can_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket may exist before a file can be stored; the check is repeated."""
    made = boto3.client
    refused: list[str] = []

    def client(*args: Any, **kwargs: Any) -> Any:
        real = made(*args, **kwargs)
        store = real.put_object

        def put_object(**arguments: Any) -> Any:
            if not refused:
                refused.append(arguments["Key"])
                raise ClientError({"Error": {"Code": "InternalError"}}, "PutObject")
            return store(**arguments)

        real.put_object = put_object
        return real

    monkeypatch.setattr(boto3, "client", client)
    with embedded.s3_server(tmp_path, "late"):
        assert refused == [".ready"]


@pytest.fixture
def _default_signals() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt; where the tests run in the background it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_default_signals")
def test_an_interrupt_during_a_start_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the fork and before `Popen` returns stops the process all the same."""
    made, started = subprocess.Popen, []

    def start(*args: Any, **kwargs: Any) -> Any:
        started.append(made(*args, **kwargs))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    with (
        pytest.raises(KeyboardInterrupt),
        embedded.running(["sleep", "60"], tmp_path / "log", lambda: True),
    ):
        pytest.fail("it was interrupted before")
    assert started[0].returncode == -signal.SIGTERM
