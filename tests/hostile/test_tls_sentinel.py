"""TLS with client certificates, of Sentinel and of the Redis that it names: all or nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from api_contracts import AsyncGenerationClient, GenerationClient, ServiceUnavailable
from tests.hostile.guarded import SYSTEM_REDIS
from tests.hostile.tls import Authority
from tests.sentinels import Watched
from worker import embedded
from worker.app import create_app
from worker.config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not SYSTEM_REDIS.exists(), reason=f"no {SYSTEM_REDIS} here")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of servers and clients."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def watched(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A group that talks TLS alone, and wants a certificate of everyone."""
    certificate, key = authority.files(embedded.LOOPBACK)
    files = {
        "cert-file": str(certificate), "key-file": str(key),
        "ca-cert-file": str(authority.certificate),
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("watched")
    with Watched(folder, str(SYSTEM_REDIS), password="s", tls=files) as running:
        yield running


@pytest.fixture(scope="module")
def url(watched: Watched, authority: Authority) -> str:
    """The URL with the authority, and with a client's certificate."""
    certificate, key = authority.files("client.test")
    own = f"&ssl_certfile={certificate}&ssl_keyfile={key}"
    return f"{watched.url}&ssl_ca_certs={authority.certificate}{own}"


def test_one_url_connects_all(url: str) -> None:
    """One URL connects both clients, the worker's broker and its results."""
    with GenerationClient(url) as client:
        task = client.submit({"prompt": "x", "model": "nobodys"})
        assert client.queue_depths(["nobodys"])["nobodys"] > 0
        assert task.cancel() == "queued"
    app = create_app(Settings(broker_url=url, device="cpu"))
    assert app.backend.client.ping()
    with app.connection_for_read() as connection:
        assert connection.default_channel.client.ping()

    async def status() -> str:
        async with AsyncGenerationClient(url) as asynchronous:
            return str(await asynchronous.handle(task.task_id).status())

    assert asyncio.run(status()) == "cancelled"


@pytest.mark.parametrize("lack", ["certificate", "authority"])
def test_nothing_connects_without(
    url: str, watched: Watched, lack: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A client without a certificate is refused; a server of another authority is not trusted."""
    if lack == "certificate":
        wrong = url.partition("&ssl_certfile")[0]
    else:
        stranger = Authority(tmp_path_factory.mktemp("stranger"))
        known = url.partition("ssl_ca_certs=")[2].partition("&")[0]
        wrong = url.replace(known, str(stranger.certificate))
    why = (
        "certificate|alert|closed|reset|EOF occurred" if lack == "certificate" else "verify failed"
    )
    with GenerationClient(wrong) as client, pytest.raises(ServiceUnavailable, match=why):
        client.handle("x").status()
    app = create_app(Settings(broker_url=wrong, device="cpu"))
    with pytest.raises(RedisError, match=why):
        app.backend.client.ping()
    with (
        pytest.raises((OperationalError, RedisError), match=why),
        app.connection_for_read() as connection,
    ):
        connection.channel()


@pytest.mark.slow
def test_doctor_connects(url: str, watched: Watched) -> None:
    """`doctor` finds a primary that refuses writes without its replicas."""
    watched.wait_for_replicas()
    asked = subprocess.run(
        [sys.executable, "-m", "worker", "doctor"],
        env={"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path), "SAG_DEVICE": "cpu",
             "SAG_BROKER_URL": url, "SAG_S3_ENDPOINT_URL": "http://127.0.0.1:9"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    found = asked.stdout + asked.stderr
    assert "redis broker: version 7" in found
    assert "redis broker min-replicas-to-write: on, 2 good replicas, 2 connected" in found
    assert "FAIL redis" not in found
