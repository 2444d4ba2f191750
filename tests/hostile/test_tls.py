"""TLS: everything connects to a Redis whose certificate it can verify, and to no other."""

from __future__ import annotations

import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError

from api_contracts import (
    GenerationClient,
    GenerationFailed,
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
    """The authority that signed the servers' certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def plain_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of this module's Redis, behind the TLS proxies."""
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
    """A TLS proxy with a bad certificate, and its URL.

    Signed by an unknown authority, or by a trusted one for another host.
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


@pytest.fixture(scope="module", params=["front", "mutual"])
def trusted(
    request: pytest.FixtureRequest,
    authority: Authority,
    plain_port: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The URL of a Redis behind a TLS proxy, or with TLS of its own and client certificates."""
    if request.param == "front":
        with front(_context(authority, embedded.LOOPBACK), plain_port) as made:
            yield f"{_url(made)}?ssl_cert_reqs=required&ssl_ca_certs={authority.certificate}"
    elif not SYSTEM_REDIS.exists():
        pytest.skip(f"no {SYSTEM_REDIS} here")
    else:
        with tls_redis(tmp_path_factory.mktemp("tls"), str(SYSTEM_REDIS), authority) as url:
            yield url


def _connects(url: str, backend: str) -> None:
    """Submit and cancel as a client, and connect as worker and as plain Celery do."""
    from worker.app import create_app
    from worker.config.settings import Settings

    with GenerationClient(url) as client:
        task = client.submit({"prompt": "x", "model": "nobodys"})
        assert client.queue_depths(["nobodys"])["nobodys"] > 0
        assert task.cancel() == "queued"
    plain = Celery("plain", broker=url, backend=backend)
    plain.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    for app in (plain, create_app(Settings(broker_url=url, device="cpu"))):
        assert app.backend.client.ping()
        with app.connection_for_read() as connection:
            assert connection.default_channel.client.ping()


def test_one_url_connects_all(trusted: str) -> None:
    """One URL works for client, worker and Celery with its results."""
    _connects(trusted, trusted)


def test_an_authority_of_the_environment_connects_all(
    authority: Authority, plain_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `SSL_CERT_FILE` the plain URL works for client, worker and Celery."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    with front(_context(authority, embedded.LOOPBACK), plain_port) as made:
        _connects(_url(made), f"{_url(made)}?ssl_cert_reqs=required")


@pytest.mark.slow
def test_one_url_works_for_all(
    trusted: str, start_service: Callable[..., AbstractContextManager[Service]]
) -> None:
    """One URL works for worker, client, `health`, `doctor`, Celery and its results."""
    connect(trusted).flushdb()  # doctor reports foreign keys
    with start_service(trusted) as service:
        wanted = {"prompt": "x", "num_inference_steps": 500}
        with pytest.raises(GenerationFailed):
            service.client.submit(wanted).result(END_S)
        stranger = Celery("stranger", broker=trusted, backend=trusted)
        answer = stranger.send_task(
            "sag.generate", kwargs={"request": {"nope": 1}}, queue="generate.default", priority=5
        )
        with pytest.raises(Exception, match="invalid_request"):
            answer.get(timeout=END_S)
        for command in ("health", "doctor"):
            asked = _command(command, **service.environment)
            output, _ = asked.communicate(timeout=60)
            assert asked.returncode == 0, output


@pytest.mark.slow
def test_the_environment_can_name_the_authority(
    authority: Authority,
    plain_port: int,
    start_service: Callable[..., AbstractContextManager[Service]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`SSL_CERT_FILE` makes all of them trust an authority, without a change to the URL."""
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
        output, _ = asked.communicate(timeout=60)
        assert asked.returncode == 0, output


def test_the_client_verifies_the_server(closed: tuple[Front, str], no_backoff: None) -> None:
    """The client sends nothing to an unverified server and raises `ServiceUnavailable`."""
    made, url = closed
    for each in (_url(made), url):  # kombu keeps connections by host and port alone
        with GenerationClient(each) as client:
            for call in (
                lambda client=client: client.submit({"prompt": "x"}, "x"),
                lambda client=client: client.handle("x").status(),
                lambda client=client: client.handle("x").cancel(),
                client.queue_depths,
            ):
                with pytest.raises(ServiceUnavailable, match="certificate verify failed"):
                    call()
    assert made.passed_bytes == 0


def test_celery_verifies_the_server(closed: tuple[Front, str]) -> None:
    """Neither broker nor result backend of worker and caller connect to an unverified server."""
    from worker.app import create_app
    from worker.config.settings import Settings

    made, url = closed
    worker = create_app(Settings(broker_url=url, device="cpu"))
    for backend in (worker.backend, Celery(backend=f"{url}&ssl_cert_reqs=required").backend):
        with pytest.raises((RedisConnectionError, OperationalError), match="verify failed"):
            backend.client.get("x")
    with (
        pytest.raises((RedisConnectionError, OperationalError), match="verify failed"),
        worker.connection_for_read() as connection,
    ):
        connection.channel()
    assert made.passed_bytes == 0


@pytest.mark.slow
@pytest.mark.parametrize(("command", "status"), [("health", 3), ("doctor", 1)])
def test_commands_verify_the_server(closed: tuple[Front, str], command: str, status: int) -> None:
    """Commands report an unverified server without a traceback."""
    made, url = closed
    asked = _command(command, SAG_BROKER_URL=url, SAG_S3_ENDPOINT_URL="http://127.0.0.1:9")
    output, _ = asked.communicate(timeout=60)
    assert asked.returncode == status
    assert "certificate verify failed" in output
    assert "Traceback" not in output
    assert made.passed_bytes == 0


@pytest.mark.slow
def test_the_worker_verifies_the_server(
    closed: tuple[Front, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A worker retries, logs why, and sends nothing to an unverified server."""
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
