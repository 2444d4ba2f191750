"""The metrics of a real worker, and what the exporter says of it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import urllib.request
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.conftest import END_S, ENDLESS, SHORT, wait_for, wait_until
from worker import embedded, metrics
from worker.config.settings import Settings
from worker.exporter.pool_status import PoolReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service

SLOTS = 4


def scrape(port: int) -> str:
    """What Prometheus gets of a worker."""
    with urllib.request.urlopen(f"http://{embedded.LOOPBACK}:{port}/metrics") as reply:
        text: str = reply.read().decode()
    return text


def samples(text: str) -> dict[str, float]:
    """Sums of the samples by name, and of those with a stage by name and stage."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            stage = sample.labels.get("stage", "")
            name = sample.name + (f" {stage}" if stage else "")
            found[name] = found.get(name, 0.0) + sample.value
    return found


@pytest.mark.slow
def test_a_worker_and_the_exporter_agree(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """A worker and the exporter agree on the slots and on the running task."""
    port = embedded.free_port()
    with (
        embedded.redis_server(tmp_path) as url,
        start_service(url, metrics_port=str(port), slots=str(SLOTS)) as worker,
    ):
        name = worker.environment["SAG_NAMESPACE"]
        reader = PoolReader(Settings.model_validate({"broker_url": url, "namespace": name}))
        wait_until(lambda: reader.read().slots == SLOTS)
        worker.client.submit(SHORT).result(END_S)
        running = worker.client.submit(ENDLESS)
        wait_for(running, "progress")
        wait_until(lambda: reader.read().running == 1)
        status = reader.read()
        assert (status.waiting, status.held, status.backlog) == (0, 0, 1 / SLOTS)
        assert (status.workers, status.workers_well, status.slots_free) == (1, 1, SLOTS - 1)
        text = scrape(port)
        running.cancel()
        wait_until(lambda: reader.read().backlog == 0.0)
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: reader.read().workers == 0)
        assert worker.client.redis.hlen(f"{name}:pool") == 0
    found = samples(text)
    assert found["sag_workers_well"] == found["sag_tasks_running"] == 1
    assert found["sag_task_queue_wait_seconds_count"] == 2
    assert found["sag_task_first_step_seconds_count"] == 2
    for stage in metrics.STAGES:
        assert found[f"sag_task_stage_seconds_count {stage}"] == 1
    assert found["sag_unet_step_seconds_count"] == found["sag_unet_call_rows_count"] > 1
    assert found["sag_unet_step_seconds_sum"] > 0
    assert found["sag_s3_retries_total"] == found["sag_redis_retries_total"] == 0
    if shutil.which("promtool"):
        checked = subprocess.run(
            ["promtool", "check", "metrics"],
            input=text, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
