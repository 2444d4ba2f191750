"""The longest time of `health`, which probes and health checks have to allow."""

from __future__ import annotations

import socket

import pytest

from api_contracts.errors import ServiceUnavailable
from api_contracts.redis_io.connection import CONNECT_S
from tests.deploy.health_time import BROKER_TIMEOUT_S
from worker import embedded
from worker.cli import health
from worker.config.settings import Settings


def test_a_broker_that_hangs_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`health` waits once for a broker that hangs, so `LONGEST_HEALTH_S` has its timeout once.

    kombu connects again while `CONNECT_S` has not passed, which is less than the timeout.
    """
    assert CONNECT_S < BROKER_TIMEOUT_S
    monkeypatch.setattr("api_contracts.redis_io.celery_app.CONNECT_S", 0.05)
    with socket.create_server((embedded.LOOPBACK, 0)) as silent:
        port = silent.getsockname()[1]
        url = f"redis://{embedded.LOOPBACK}:{port}/0?socket_timeout=0.2"
        with pytest.raises(ServiceUnavailable):
            health.host_workers(Settings(broker_url=url))
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()
