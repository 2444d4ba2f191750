"""A real Prometheus scrapes a real worker and a real exporter; every panel has data."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationFailed
from benchmarks import prometheus
from benchmarks.prometheus import DASHBOARD, PROGRAM, Prometheus, Query, dashboard_queries
from tests import fork_server
from tests.service.conftest import END_S, ENDLESS, SHORT, wait_for, wait_until
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no prometheus here (Debian's package of the name)"),
]

#: Queries that may have no data in a healthy run, with the reason.
MAY_BE_EMPTY = {
    "max by (model, priority) (sag_pool_tasks_waiting) > 0": "shows only lists with messages",
}
#: Alerts that may be pending before the first scrapes, with the reason. None may fire.
MAY_BE_PENDING = {
    "SagNoTarget": "no target has answered yet",
    "SagExporterAbsent": "the exporter was not scraped yet",
}


@pytest.fixture(scope="module")
def monitored(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Service, Prometheus]]:
    """A worker with two slots, an exporter, and the Prometheus that scrapes both."""
    folder = tmp_path_factory.mktemp("prometheus")
    metrics_port, exporter_port = embedded.free_ports(2)
    command = [
        sys.executable, "-m", "worker", "exporter",
        "--host", embedded.LOOPBACK, "--port", str(exporter_port),
    ]  # fmt: skip
    targets = {
        "sag-worker": f"{embedded.LOOPBACK}:{metrics_port}",
        "sag-exporter": f"{embedded.LOOPBACK}:{exporter_port}",
    }
    log = folder / "exporter.log"
    with (
        embedded.redis_server(folder) as url,
        start_service(url, metrics_port=str(metrics_port), slots="2") as worker,
        fork_server.running(
            command, log, lambda: "serving" in log.read_text(), worker.environment, stop_s=10
        ),
        prometheus.running(folder, targets) as server,
    ):
        yield worker, server


def test_every_panel_has_data(monitored: tuple[Service, Prometheus]) -> None:
    """Every panel has data after tasks waited, ran, succeeded, failed and were cancelled.

    No alert of the deployment fires or is pending meanwhile: the run is shorter than most of them
    must hold before they fire.
    """
    worker, server = monitored
    wait_until(lambda: len(server.query("up == 1")) == 2)
    running = [worker.client.submit(ENDLESS) for _ in range(2)]
    for each in running:
        wait_for(each, "progress")
    waiting = worker.client.submit(SHORT | {"priority": 3})
    wait_until(lambda: server.query("sum(sag_pool_tasks_waiting)") == [({}, 1.0)])
    found = server.query("max by (model, priority) (sag_pool_tasks_waiting) > 0")
    assert found == [({"model": "default", "priority": "3"}, 1.0)]
    wait_until(lambda: server.query("max(sag_pool_tasks_running)") == [({}, 2.0)])
    assert server.query("max(sag_pool_backlog_workers)") == [({}, 1.5)]
    running[0].cancel()
    waiting.result(END_S)
    with pytest.raises(GenerationFailed):
        worker.client.submit(SHORT | {"scheduler": "nope"}).result(END_S)
    wait_until(lambda: _increases(server, 'sag_task_failures_total{code="unsupported_scheduler"}'))
    empty: list[Query] = []

    def all_have_data() -> bool:
        empty[:] = [query for query in dashboard_queries() if not _has_data(server, query)]
        return {query.expression for query in empty} <= set(MAY_BE_EMPTY)

    try:
        wait_until(all_have_data)
    finally:
        print([query.expression for query in empty])
    running[1].cancel()
    found = server.query("group by (alertname, alertstate) (max_over_time(ALERTS[1h]))")
    alerts = {(labels["alertname"], labels["alertstate"]) for labels, _ in found}
    assert alerts <= {(name, "pending") for name in MAY_BE_PENDING}
    assert set(MAY_BE_EMPTY) <= {query.expression for query in dashboard_queries()}


def _increases(server: Prometheus, series: str) -> bool:
    return any(value > 0 for _, value in server.query(f"increase({series}[1m])"))


def _has_data(server: Prometheus, query: Query) -> bool:
    """Whether a query gives at least one number that is one."""
    return any(value == value for _, value in server.query(query.runnable))  # noqa: PLR0124  # not NaN


def test_every_rule_is_evaluated(monitored: tuple[Service, Prometheus], tmp_path: Path) -> None:
    """Prometheus evaluates every deployed rule without an error."""
    _, server = monitored
    assert DASHBOARD.exists()

    def groups() -> list[dict[str, str]]:
        return [rule for group in server.ask("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: {rule["health"] for rule in groups()} == {"ok"})
    assert len(groups()) > 20
