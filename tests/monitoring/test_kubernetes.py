"""The scrape configuration of docs/kubernetes.md, by promtool and against the manifests."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.deploy.manifests import DEPLOYMENTS, container, overlay, the, yaml_of_page
from tests.monitoring.test_rules import needs_promtool, promtool

if TYPE_CHECKING:
    from pathlib import Path

#: How Prometheus names what it finds of a pod.
POD = "__meta_kubernetes_pod_"


@pytest.fixture
def job() -> dict[str, Any]:
    """The only job of the documented configuration."""
    (found,) = yaml.safe_load(yaml_of_page("scrape_configs:"))["scrape_configs"]
    result: dict[str, Any] = found
    return result


def found_pod(deployment: str) -> dict[str, str]:
    """What Prometheus finds of a port of a deployment's pod."""
    resources = overlay("keda")
    labels = the(resources, "Deployment", deployment)["spec"]["template"]["metadata"]["labels"]
    (port,) = container(resources, deployment)["ports"]
    return {
        f"{POD}name": f"{deployment}-1",
        f"{POD}container_port_name": port["name"],
        **{f"{POD}label_" + re.sub(r"\W", "_", name): value for name, value in labels.items()},
    }


@needs_promtool
@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_it_keeps_the_pods_and_no_others(
    job: dict[str, Any], deployment: str, tmp_path: Path
) -> None:
    """The scrape job keeps its deployment's pods alone, as the job whose name the alerts know.

    Debian's promtool can't discover pods, so what it would find is given to it.
    """
    pod = found_pod(deployment)
    foreign = pod | {f"{POD}label_app_kubernetes_io_name": "other"}
    unscraped = pod | {f"{POD}container_port_name": "web"}
    del job["kubernetes_sd_configs"]
    job["static_configs"] = [
        {"targets": ["10.0.0.1:1"], "labels": each} for each in (pod, foreign, unscraped)
    ]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
    arguments = ["service-discovery", "--timeout=1s", "prometheus.yml", job["job_name"]]
    for each in (["config", "prometheus.yml"], arguments):
        done = promtool("check", *each, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(done.stdout)
    assert len(results) == len(job["static_configs"])
    (kept,) = [each["labels"] for each in results if each["labels"]]
    assert (kept["job"], kept["pod"]) == (deployment, f"{deployment}-1")


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_it_looks_where_they_are_and_may_ask_them(job: dict[str, Any], deployment: str) -> None:
    """The scrape job looks in the pods' namespace; their policy admits namespace `monitoring`."""
    resources = overlay("keda")
    (discovery,) = job["kubernetes_sd_configs"]
    namespace = the(resources, "Deployment", deployment)["metadata"]["namespace"]
    assert (discovery["role"], discovery["namespaces"]) == ("pod", {"names": [namespace]})
    (rule,) = the(resources, "NetworkPolicy", deployment)["spec"]["ingress"]
    selector = rule["from"][0]["namespaceSelector"]
    values = [
        *selector.get("matchLabels", {}).values(),
        *(value for each in selector.get("matchExpressions", []) for value in each["values"]),
    ]
    assert "monitoring" in values
