"""A worker that still takes tasks says what is wrong beside it."""

from __future__ import annotations

import json
import socket
import urllib.request
import uuid
from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationFailed
from tests.service.conftest import END_S, wait_until
from tests.service.test_unwell import SHORT, WORK, health
from tests.storage.stores import Lacks, store
from worker import embedded
from worker.config.models import SHIPPED_MODEL

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service
    from worker.embedded import S3Server

MODELS = json.dumps({
    "default": {"path": str(SHIPPED_MODEL), "safety_checker": False},
    "remote": {"path": "owner/name"},
})  # fmt: skip


@pytest.mark.slow
def test_a_silent_hub_and_a_full_store_are_named(
    s3: S3Server,
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path: Path,
) -> None:
    """A silent hub and a full store are named in `health`, which is well, and in the metrics."""
    name, port = f"notices{uuid.uuid4().hex[:8]}", embedded.free_port()
    with (
        socket.create_server((embedded.LOOPBACK, 0)) as hub,
        store(s3.endpoint_url, Lacks.ROOM) as full,
        embedded.redis_server(tmp_path) as url,
        start_service(
            url, WORK,
            {"HF_ENDPOINT": f"http://{embedded.LOOPBACK}:{hub.getsockname()[1]}",
             "HF_HOME": str(tmp_path / "hub"), "HF_HUB_ETAG_TIMEOUT": "600"},
            namespace=name, models=MODELS, s3_endpoint_url=full, metrics_port=str(port),
        ) as worker,
    ):  # fmt: skip
        waiting = worker.client.submit(SHORT | {"model": "remote"})
        wait_until(lambda: "model 'remote' is being downloaded for" in health(worker)[1])
        with pytest.raises(GenerationFailed, match="the store is full"):
            worker.client.submit(SHORT).result(END_S)
        status, printed = health(worker)
        assert status == 0
        assert "well; model 'remote' is being downloaded for" in printed
        assert "S3 fails: S3 refused put_object" in printed
        address = f"http://{embedded.LOOPBACK}:{port}/metrics"
        wait_until(lambda: _metric(address, "sag_model_download_seconds") > 0)
        assert _metric(address, "sag_s3_failures_total") >= 1
        waiting.cancel()
        wait_until(lambda: waiting.status() == "cancelled")


def _metric(address: str, name: str) -> float:
    with urllib.request.urlopen(address, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))
