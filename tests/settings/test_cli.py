"""The commands when their options, settings or servers are wrong."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from api_contracts import GenerationClient
from api_contracts.redis_io import celery_app
from worker import logs
from worker.cli import main
from worker.cli.terminal_image import Preview
from worker.embedded import free_port
from worker.supervisor import supervisor

if TYPE_CHECKING:
    from typer.testing import Result


def command(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main.app, arguments, env=environment)


@pytest.fixture(autouse=True)
def _keep_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command replaces the handlers of the tests' own log."""
    monkeypatch.setattr(logs, "configure", lambda _: None)


@pytest.mark.parametrize(
    "arguments",
    [("submit", "x"), ("submit", "x", "--wait"), ("watch", "t"), ("cancel", "t"), ("health",)],
)
def test_every_command_reports_an_unreachable_redis(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Without Redis a command exits with 3 and one line, and prints no result."""
    monkeypatch.setattr(celery_app, "CONNECT_S", 0.1)  # kombu retries within this time
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda _: None)
    done = command(*arguments, SAG_BROKER_URL=f"redis://127.0.0.1:{free_port()}/0")
    assert (done.exit_code, done.stdout) == (3, "")
    assert "Redis does not answer" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_setting_is_named_as_it_is_written() -> None:
    """An error inside a setting names the variable and the place in its JSON."""
    done = command("cancel", "t", SAG_MODELS='{"sd15": {"path": "a/b", "dtype": "int4"}}')
    assert done.exit_code == 2
    assert "SAG_MODELS.sd15.dtype:" in done.stderr


def test_gpu_and_device_exclude_each_other() -> None:
    """`--gpu` with `--device` is refused: one of them would have no effect."""
    done = command("run", "--gpu", "0", "--device", "cpu")
    assert done.exit_code == 2
    assert "--gpu or --device" in done.stderr


@pytest.mark.parametrize("removed", ["kitty", "iterm2"])
def test_an_unknown_preview_is_refused_with_the_known_ones(removed: str) -> None:
    """An unknown preview, also one of an earlier version, is refused with the known ones."""
    done = command("submit", "x", "--preview", removed)
    assert done.exit_code == 2
    assert all(each in done.stderr for each in (removed, *Preview))


@pytest.mark.parametrize(
    ("given", "chosen"),
    [((), "cuda:1"), (("--device", "auto"), "auto"), (("--device", "cpu"), "cpu")],
)
def test_the_option_overrides_the_setting(
    monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], chosen: str
) -> None:
    """`--device`, `auto` too, overrides `SAG_DEVICE`."""
    asked: list[str] = []

    def worker_environments(device: str, *_: object) -> dict[str, dict[str, str]]:
        asked.append(device)
        return {}

    monkeypatch.setattr(supervisor, "worker_environments", worker_environments)
    monkeypatch.setattr(supervisor, "run", lambda *_: 0)
    assert command("run", *given, SAG_DEVICE="cuda:1").exit_code == 0
    assert asked == [chosen]


def test_a_driver_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` exits with 2 and the reason, before any process is started."""

    def fail() -> None:
        raise RuntimeError("NVIDIA's driver fails")

    monkeypatch.setattr("worker.devices.list_gpus", fail)
    done = command("run")
    assert done.exit_code == 2
    assert "NVIDIA's driver fails" in done.stderr


def test_the_client_verifies_the_certificate_of_the_broker() -> None:
    """On `rediss://` the sending side verifies certificates, as the reading side does."""
    with GenerationClient("rediss://127.0.0.1:1/0") as client:
        for redis in (client.redis, client._broker, client._counter):
            asked = redis.connection_pool.connection_kwargs["ssl_cert_reqs"]
            assert asked == ssl.CERT_REQUIRED


def test_a_used_port_for_metrics_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A used port for metrics is named in a line, before any process is started."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # put back what the command sets
    with socket.socket() as used:
        used.bind(("", 0))
        used.listen()
        port = str(used.getsockname()[1])
        done = command("run", "--device", "cpu", SAG_METRICS_PORT=port)
    assert done.exit_code == 2
    assert f"SAG_METRICS_PORT={port}" in done.stderr
    assert "Traceback" not in done.stderr
