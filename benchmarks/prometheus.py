"""A real Prometheus over a worker and an exporter, with the deployed rules and dashboard."""

from __future__ import annotations

import json
import shutil
import urllib.parse
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEPLOYED = Path(__file__).resolve().parents[1] / "deploy" / "monitoring"
DASHBOARD = DEPLOYED / "grafana" / "dashboards" / "sag-worker.json"
#: Debian's package of the same name.
PROGRAM = shutil.which("prometheus")
#: Time between two scrapes here, and the range over which rates are taken, in seconds.
SCRAPE_S, RATE_S = 1, 15


@dataclass(frozen=True)
class Query:
    """A query of the dashboard."""

    panel: str
    expression: str
    #: As Grafana has it, with `{{label}}`.
    legend: str

    @property
    def runnable(self) -> str:
        """With a value for Grafana's own variable."""
        return self.expression.replace("$__rate_interval", f"{RATE_S}s")

    def named(self, labels: Mapping[str, str]) -> str:
        """The legend of a series."""
        text = self.legend
        for name, value in labels.items():
            text = text.replace("{{" + name + "}}", value)
        return text


def dashboard_queries() -> list[Query]:
    """Every query of the dashboard, in the order of its panels."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [
        Query(panel["title"], target["expr"], target["legendFormat"])
        for panel in panels
        for target in panel.get("targets", ())
    ]


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def ask(self, path: str, **parameters: object) -> Any:  # noqa: ANN401  # its JSON
        """The data of an answer of its HTTP API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}") as reply:  # noqa: S310  # http
            return json.load(reply)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The labels and values of an instant vector, now."""
        found = self.ask("query", query=expression)["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    def query_range(
        self, expression: str, start_s: float, end_s: float
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """The labels and points, Unix seconds and value, of each series; a point a second."""
        found = self.ask("query_range", query=expression, start=start_s, end=end_s, step=SCRAPE_S)
        return [
            (each["metric"], [(float(at), float(value)) for at, value in each["values"]])
            for each in found["result"]
        ]


@contextmanager
def running(folder: Path, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """A Prometheus with the deployed configuration, but other targets: `host:port` by job.

    It scrapes and evaluates its rules each second.
    """
    assert PROGRAM is not None
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    for job in config["scrape_configs"]:
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(DEPLOYED / "rules.yml", folder)
    address = f"{embedded.LOOPBACK}:{embedded.free_port()}"
    server = Prometheus(f"http://{address}")
    command = [
        PROGRAM, f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}",
    ]  # fmt: skip

    def ready() -> bool:
        try:
            return bool(server.query("vector(1)"))
        except OSError:
            return False

    with embedded.running(command, folder / "prometheus.log", ready):
        yield server
