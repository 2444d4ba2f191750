"""The deployed dashboard, without Grafana: its panels, and the metrics that it asks for."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client import REGISTRY

from benchmarks.prometheus import DASHBOARD, DEPLOYED, dashboard_queries
from tests.monitoring.test_rules import MONITORING, rules
from worker import metrics
from worker.exporter.pool_metrics import GAUGES

if TYPE_CHECKING:
    from collections.abc import Iterable

OWN = ("sag_exporter_redis_up", "sag_exporter_read_seconds", "sag_pool_tasks_waiting")


def served() -> dict[str, str]:
    """The names of all metrics of worker and exporter, without suffixes, and their types."""
    assert metrics.REDIS_RETRIES is not None  # they are registered when it is imported
    workers = {
        metric.name: metric.type for metric in REGISTRY.collect() if metric.name.startswith("sag_")
    }
    exporter = [name for name, _ in GAUGES.values()] + list(OWN)
    return workers | dict.fromkeys(exporter, "gauge")


def asked(expressions: Iterable[str]) -> set[str]:
    """The names of metrics in queries."""
    return {name for each in expressions for name in re.findall(r"\bsag_\w+", each)}


def names_of(metric: str, kind: str) -> set[str]:
    """Under which names Prometheus has a metric."""
    if kind == "histogram":
        return {f"{metric}_{suffix}" for suffix in ("bucket", "sum", "count")}
    return {f"{metric}_total"} if kind == "counter" else {metric}


def test_every_metric_that_is_asked_for_is_served() -> None:
    """Every metric that a panel, an alert or its test asks for is served."""
    known = {name for metric in served().items() for name in names_of(*metric)}
    conditions = [rule["expr"] for rule in rules().values()]
    assert asked(query.expression for query in dashboard_queries()) <= known
    assert asked(conditions) <= known
    tests = yaml.safe_load((DEPLOYED / "rules_test.yml").read_text())["tests"]
    series = [each["series"] for group in tests for each in group["input_series"]]
    assert asked(series) <= known


def test_every_metric_is_on_the_dashboard() -> None:
    """Every metric is on the dashboard, but for the reading's seconds and the free slots."""
    shown = asked(query.expression for query in dashboard_queries())
    hidden = {name for name, kind in served().items() if not names_of(name, kind) & shown}
    assert hidden == {"sag_exporter_read_seconds", "sag_pool_slots_free"}


def test_every_metric_is_documented() -> None:
    """docs/monitoring.md names each metric that is served, and no other."""
    text = MONITORING.read_text()
    written = set(re.findall(r"`(sag_\w+)", text))
    expected = {f"{name}_total" if kind == "counter" else name for name, kind in served().items()}
    assert written == expected


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    """Grafana's JSON."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def test_panels_are_whole_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    """Each panel has its own id and place, a description, a unit and a data source by variable."""
    panels = dashboard["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        own = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert not own & cells, panel["title"]
        assert max(column for column, _ in own) < 24
        cells |= own
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
            refs = [target["refId"] for target in panel["targets"]]
            assert all(first < second for first, second in pairwise(refs))


def test_a_second_exporter_changes_no_panel() -> None:
    """Two exporters give the same numbers: the larger of them is shown, never their sum."""
    of_pool = r"sag_(?:pool|exporter)_"
    for query in dashboard_queries():
        around = re.findall(rf"(\w+) ?(?:by \([\w, ]+\) )?\((?={of_pool})", query.expression)
        assert set(around) <= {"max", "min"}, query
        assert bool(around) == bool(re.search(of_pool, query.expression)), query


def test_grafana_finds_the_dashboard() -> None:
    """Grafana's provisioning names the folder that the stack mounts and the server that it runs."""
    root = DEPLOYED / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((root / "dashboards" / "sag-worker.yml").read_text())["providers"]
    (source,) = yaml.safe_load((root / "datasources" / "prometheus.yml").read_text())["datasources"]
    stack = yaml.safe_load((DEPLOYED.parents[1] / "docker-compose.yml").read_text())["services"]
    mounted = dict(each.split(":")[:2] for each in stack["grafana"]["volumes"])
    assert mounted["./deploy/monitoring/grafana/dashboards"] == provider["options"]["path"]
    assert source["url"] == "http://prometheus:9090"
    scraped = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())["global"]
    assert source["jsonData"]["timeInterval"] == scraped["scrape_interval"]
