"""The commands when something is wrong around them."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from api_contracts import GenerationClient
from worker import logs
from worker.cli import main
from worker.embedded import free_ports
from worker.supervisor import supervisor


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        env={**os.environ, **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [("submit", "x"), ("submit", "x", "--wait"), ("watch", "t"), ("cancel", "t"), ("health",)],
)
def test_every_command_says_in_a_line_that_redis_is_away(arguments: tuple[str, ...]) -> None:
    """Without Redis a command ends with status 3 and one line, and prints no result."""
    (port,) = free_ports(1)
    done = command(*arguments, SAG_BROKER_URL=f"redis://127.0.0.1:{port}/0")
    assert (done.returncode, done.stdout) == (3, "")
    assert "Redis does not answer" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_setting_is_named_as_it_is_written() -> None:
    """A fault inside a setting names the variable and the place in its JSON."""
    done = command("cancel", "t", SAG_MODELS='{"sd15": {"path": "a/b", "dtype": "int4"}}')
    assert done.returncode == 2
    assert "SAG_MODELS.sd15.dtype:" in done.stderr


def test_two_ways_to_name_a_device_are_refused_together() -> None:
    """`--gpu` beside `--device` would leave one of them without effect."""
    done = command("run", "--gpu", "0", "--device", "cpu")
    assert done.returncode == 2
    assert "--gpu or --device" in done.stderr


@pytest.mark.parametrize(
    ("given", "chosen"),
    [((), "cuda:1"), (("--device", "auto"), "auto"), (("--device", "cpu"), "cpu")],
)
def test_the_option_goes_before_the_setting(
    monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], chosen: str
) -> None:
    """`--device`, `auto` too, counts more than `SAG_DEVICE`."""
    asked: list[str] = []

    def environments(device: str, *_: object) -> dict[str, dict[str, str]]:
        asked.append(device)
        return {}

    monkeypatch.setenv("SAG_DEVICE", "cuda:1")
    monkeypatch.setattr(logs, "configure", lambda _: None)
    monkeypatch.setattr(supervisor, "worker_environments", environments)
    monkeypatch.setattr(supervisor, "run", lambda *_: 0)
    assert CliRunner().invoke(main.app, ["run", *given]).exit_code == 0
    assert asked == [chosen]


def test_the_client_verifies_the_certificate_of_the_broker() -> None:
    """On `rediss://` the sending side checks whom it talks to, as the reading side does."""
    with GenerationClient("rediss://127.0.0.1:1/0") as client:
        assert client._sender._celery.connection_for_write().ssl == {
            "ssl_cert_reqs": ssl.CERT_REQUIRED
        }
        assert client.redis.connection_pool.connection_kwargs.get("ssl_cert_reqs") != "none"


def test_a_port_for_metrics_that_is_taken_is_named() -> None:
    """Before a process is started, in a line."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = command("run", "--device", "cpu", SAG_METRICS_PORT=port)
    assert done.returncode == 2
    assert f"SAG_METRICS_PORT={port}" in done.stderr
    assert "Traceback" not in done.stderr
