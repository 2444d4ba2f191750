"""The deployed alerts and the scrape configuration, by Prometheus's own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.prometheus import DEPLOYED
from worker.config.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = ROOT / "docs" / "operations.md"
MONITORING = ROOT / "docs" / "monitoring.md"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool here (Debian's package prometheus)"
)


def rules() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    (group,) = yaml.safe_load((DEPLOYED / "rules.yml").read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def promtool(*arguments: str, folder: Path = DEPLOYED) -> subprocess.CompletedProcess[str]:
    """Run promtool in a folder."""
    return subprocess.run(
        ["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    """Each alert fires when it should and only then, by `promtool test rules`."""
    done = promtool("test", "rules", "rules_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_scrape_configuration_is_valid() -> None:
    """The scrape configuration and its rules are valid by `promtool check config`."""
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.slow  # 23 runs of promtool
@pytest.mark.parametrize("name", rules())
def test_the_tests_of_an_alert_find_its_absence(name: str, tmp_path: Path) -> None:
    """The tests of an alert fail when its condition never holds."""
    text = (DEPLOYED / "rules.yml").read_text()
    lines, inside = [], False
    for line in text.splitlines():
        inside = line.endswith(f"alert: {name}") or (inside and "- alert:" not in line)
        lines.append(re.sub(r"expr: .*", "expr: vector(1) > 2", line) if inside else line)
    (tmp_path / "rules.yml").write_text("\n".join(lines))
    shutil.copy(DEPLOYED / "rules_test.yml", tmp_path)
    done = promtool("test", "rules", "rules_test.yml", folder=tmp_path)
    assert done.returncode != 0
    assert name in done.stdout + done.stderr


def test_each_alert_is_tested_to_fire_and_not_to() -> None:
    """Each alert is tested in `rules_test.yml` to fire, and not to fire."""
    groups = yaml.safe_load((DEPLOYED / "rules_test.yml").read_text())["tests"]
    expected: dict[str, set[bool]] = {}
    for test in (test for group in groups for test in group["promql_expr_test"]):
        (name,) = re.findall(r'alertname="(\w+)"', test["expr"])
        expected.setdefault(name, set()).add(bool(test["exp_samples"]))
    fires = {name for name, outcomes in expected.items() if True in outcomes}
    assert fires == set(rules())
    once = {name for name, outcomes in expected.items() if outcomes == {True}}
    others = {group["name"] for group in groups if len(group["input_series"]) > 1}
    assert once <= others  # beside a series that does not fire


def test_the_documents_name_every_alert() -> None:
    """docs/operations.md names each alert, and no other."""
    named = set(re.findall(r"`(Sag[A-Z]\w+)`", OPERATIONS.read_text()))
    assert named == set(rules())


@pytest.mark.parametrize("name", rules())
def test_an_alert_tells_what_to_do(name: str) -> None:
    """Each alert has a severity, a summary and a description."""
    rule = rules()[name]
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() == {"summary", "description"}


def test_worker_and_exporter_are_one_image() -> None:
    """Worker and exporter have the same image and build, with and without a GPU."""
    for file in ("docker-compose.yml", "docker-compose.gpu.yml"):
        services = yaml.safe_load((ROOT / file).read_text())["services"]
        for field in ("image", "build"):
            assert services["exporter"][field] == services["worker"][field]


def test_compose_serves_what_is_scraped() -> None:
    """The ports of the scrape configuration are those of the stack's worker and exporter."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    jobs = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())["scrape_configs"]
    (worker,) = jobs[0]["dns_sd_configs"]
    assert worker["names"] == ["worker"]
    assert str(worker["port"]) == services["worker"]["environment"]["SAG_METRICS_PORT"]
    assert jobs[1]["static_configs"] == [{"targets": ["exporter:9808"]}]
    assert services["exporter"]["command"] == ["exporter"]
    for name in ("exporter", "prometheus", "grafana"):
        assert services[name]["profiles"] == ["monitoring"]
        own_port = services[name]["ports"][0].rpartition(":")[2]
        assert f"http://127.0.0.1:{own_port}/" in services[name]["healthcheck"]["test"][-1]
    shared = set(services["exporter"]["environment"])
    assert shared <= {f"SAG_{name.upper()}" for name in Settings.model_fields}
