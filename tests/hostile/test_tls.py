"""TLS: everything speaks to a Redis whose certificate it can verify, and to no other."""

from __future__ import annotations

import ssl
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError

from api_contracts import (
    GenerationClient,
    GenerationFailed,
    GenerationRequest,
    ServiceUnavailable,
)
from api_contracts.redis_io.connection import connect
from tests.hostile.guarded import SYSTEM_REDIS, until
from tests.hostile.tls import Authority, Front, front, tls_redis
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.conftest import Service

END_S = 120.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whoever signed the servers' certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def plain_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Redis of this module's own, behind the fronts."""
    port = embedded.free_port()
    with embedded.redis_server(tmp_path_factory.mktemp("redis"), port):
        yield port


@pytest.fixture(scope="module", params=["here", "elsewhere.test"])
def closed(
    request: pytest.FixtureRequest,
    authority: Authority,
    plain_port: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Front, str]]:
    """A front to which nobody may speak, and the URL to try.

    Its certificate is signed by a stranger, or by one that is trusted, but for another host.
    """
    stranger = Authority(tmp_path_factory.mktemp("stranger"))
    signer, name = (
        (stranger, embedded.LOOPBACK) if request.param == "here" else (authority, request.param)
    )
    with front(_context(signer, name), plain_port) as made:
        yield made, f"{_url(made)}?ssl_ca_certs={authority.certificate}"


def _context(signer: Authority, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*signer.files(name))
    return context


def _url(made: Front) -> str:
    return f"rediss://{embedded.LOOPBACK}:{made.port}/0"


def _command(command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "worker", command],
        env={"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path), "SAG_DEVICE": "cpu",
             **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("server", ["front", "mutual"])
def test_one_url_serves_them_all(
    server: str,
    authority: Authority,
    plain_port: int,
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Worker, client, health, doctor, Celery and its results, with the same URL.

    `mutual` is Redis's own TLS, which wants a certificate of its clients, too.
    """
    if server == "mutual" and not SYSTEM_REDIS.exists():
        pytest.skip(f"no {SYSTEM_REDIS} here")
    with ExitStack() as stack:
        if server == "mutual":
            folder = tmp_path_factory.mktemp("tls")
            url = stack.enter_context(tls_redis(folder, str(SYSTEM_REDIS), authority))
        else:
            context = _context(authority, embedded.LOOPBACK)
            made = stack.enter_context(front(context, plain_port))
            connect(f"redis://{embedded.LOOPBACK}:{plain_port}/0").flushdb()  # doctor wants its own
            url = f"{_url(made)}?ssl_cert_reqs=required&ssl_ca_certs={authority.certificate}"
        service = stack.enter_context(start_service(url))
        wanted = {"prompt": "x", "num_inference_steps": 500}
        with pytest.raises(GenerationFailed):
            service.client.submit(wanted).result(END_S)
        stranger = Celery("stranger", broker=url, backend=url)
        answer = stranger.send_task(
            "sag.generate", kwargs={"request": {"nope": 1}}, queue="generate.default", priority=5
        )
        with pytest.raises(Exception, match="invalid_request"):
            answer.get(timeout=END_S)
        for command in ("health", "doctor"):
            asked = _command(command, **service.environment)
            told, _ = asked.communicate(timeout=60)
            assert asked.returncode == 0, told


def test_the_environment_can_say_who_is_trusted(
    authority: Authority,
    plain_port: int,
    start_service: Callable[..., AbstractContextManager[Service]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`SSL_CERT_FILE` does it for all of them, and the URL stays as it is."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    with (
        front(_context(authority, embedded.LOOPBACK), plain_port) as made,
        start_service(_url(made)) as service,
    ):
        stopped = service.client.submit({"prompt": "x", "model": "nobodys"})
        assert stopped.cancel() == "queued"
        app = Celery("stranger", broker=_url(made), backend=f"{_url(made)}?ssl_cert_reqs=required")
        app.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        answer = app.send_task("sag.generate", kwargs={"nope": 1}, queue="generate.default")
        with pytest.raises(Exception, match="invalid_request"):
            answer.get(timeout=END_S)
        asked = _command("health", **service.environment, SSL_CERT_FILE=str(authority.certificate))
        told, _ = asked.communicate(timeout=60)
        assert asked.returncode == 0, told


def test_no_client_speaks_to_a_stranger(closed: tuple[Front, str]) -> None:
    """Submit, status and cancel raise `ServiceUnavailable`, and nothing was sent."""
    made, url = closed
    for each in (_url(made), url):  # kombu keeps connections by host and port alone
        with GenerationClient(each) as client:
            for call in (
                lambda client=client: client.submit({"prompt": "x"}, "x"),
                lambda client=client: client.handle("x").status(),
                lambda client=client: client.handle("x").cancel(),
                client.queue_depths,
                lambda client=client: client._sender.send([("x", GenerationRequest(prompt="x"))]),
            ):
                with pytest.raises(ServiceUnavailable, match="certificate verify failed"):
                    call()
    assert made.passed_bytes == 0


def test_no_results_come_from_a_stranger(closed: tuple[Front, str]) -> None:
    """Celery's results, as the worker writes and as `docs/calling.md` has a caller read them."""
    from worker.app import create_app
    from worker.config.settings import Settings

    made, url = closed
    backends = [
        create_app(Settings(broker_url=url, device="cpu")).backend,
        Celery(backend=f"{url}&ssl_cert_reqs=required").backend,
    ]
    for backend in backends:
        with pytest.raises((RedisConnectionError, OperationalError), match="verify failed"):
            backend.client.get("x")
    assert made.passed_bytes == 0


@pytest.mark.parametrize(("command", "status"), [("health", 3), ("doctor", 1)])
def test_no_command_speaks_to_a_stranger(
    closed: tuple[Front, str], command: str, status: int
) -> None:
    """The commands say why, without a traceback."""
    made, url = closed
    asked = _command(command, SAG_BROKER_URL=url, SAG_S3_ENDPOINT_URL="http://127.0.0.1:9")
    told, _ = asked.communicate(timeout=60)
    assert asked.returncode == status
    assert "certificate verify failed" in told
    assert "Traceback" not in told
    assert made.passed_bytes == 0


def test_no_worker_speaks_to_a_stranger(
    closed: tuple[Front, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It tries again and again, says why, and neither sends nor takes anything."""
    made, url = closed
    log = tmp_path_factory.mktemp("worker") / "log"
    with embedded.running(
        [sys.executable, "-m", "worker", "run"],
        log,
        lambda: "Cannot connect" in log.read_text(),
        {"SAG_BROKER_URL": url, "SAG_DEVICE": "cpu"},
        stop_s=30,
    ):
        until(lambda: log.read_text().count("certificate verify failed") > 3)
    assert "ready." not in log.read_text()
    assert made.passed_bytes == 0
