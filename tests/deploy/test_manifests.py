"""The Kubernetes manifests: published schemas, settings, ports, secrets, components."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import kubernetes_validate
import pytest
import yaml
from jsonschema import ValidationError

from tests.deploy.manifests import (
    COMPONENTS,
    DEPLOYMENTS,
    KUBERNETES,
    OVERLAYS,
    Resource,
    container,
    environment,
    overlay,
    rendered,
    settings,
    the,
)
from tests.deploy.schemas import VERSIONS, check

if TYPE_CHECKING:
    from pathlib import Path


def ports(rules: list[Resource]) -> set[int | str]:
    return {port["port"] for rule in rules for port in rule["ports"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_is_valid(resources: tuple[Resource, ...], version: str) -> None:
    """Every resource is valid by the published schemas, which refuse unknown fields."""
    assert len(resources) >= 8
    for each in resources:
        check(each, version)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("Deployment", {"minReadySecond": 1}),
        ("Deployment", {"minReadySeconds": "1"}),
        ("ScaledObject", {"pollingIntervals": 1}),
        ("ScaledObject", {"pollingInterval": 0}),
        ("ScaledObject", {"triggers": []}),
        ("ScaledObject", {"minReplicaCount": 5}),
    ],
)
def test_a_wrong_field_is_refused(kind: str, wrong: Resource) -> None:
    """The check of the schemas sees a misspelt field, a wrong type and a limit."""
    right = the(overlay("keda"), kind, "sag-worker")
    with pytest.raises((kubernetes_validate.ValidationError, ValidationError)):
        check({**right, "spec": {**right["spec"], **wrong}}, VERSIONS[-1])


def test_every_setting_is_one_of_the_worker(resources: tuple[Resource, ...]) -> None:
    """The worker knows every variable of the manifests and accepts its value."""
    assert settings(resources).metrics_port is not None


def test_ports_are_those_of_the_settings(resources: tuple[Resource, ...]) -> None:
    """What the worker and the exporter serve is what Service and network policies name."""
    worker, exporter = container(resources, "sag-worker"), container(resources, "sag-exporter")
    assert [each["containerPort"] for each in worker["ports"]] == [settings(resources).metrics_port]
    assert exporter["args"] == ["exporter", "--port", str(exporter["ports"][0]["containerPort"])]
    service = the(resources, "Service", "sag-exporter")["spec"]["ports"][0]
    assert service["targetPort"] == exporter["ports"][0]["name"] == "metrics"


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_only_metrics_come_in(resources: tuple[Resource, ...], deployment: str) -> None:
    """A deployment's policy admits metrics alone, and lets out DNS, Redis and HTTPS alone."""
    policy = the(resources, "NetworkPolicy", deployment)["spec"]
    labels = the(resources, "Deployment", deployment)["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert ports(policy["ingress"]) == {"metrics"}
    assert all(each["from"] for each in policy["ingress"])
    assert ports(policy["egress"]) - {443} == {53, 6379}


@pytest.mark.parametrize("kind", ["PodDisruptionBudget", "Deployment"])
def test_workers_leave_one_at_a_time(resources: tuple[Resource, ...], kind: str) -> None:
    """A drain of nodes and a rollout take one worker at a time, without a spare GPU."""
    spec = the(resources, kind, "sag-worker")["spec"]
    rule = spec if kind == "PodDisruptionBudget" else spec["strategy"]["rollingUpdate"]
    assert (rule["maxUnavailable"], rule.get("maxSurge", 0)) == (1, 0)
    assert spec["selector"]["matchLabels"]["app.kubernetes.io/component"] == "worker"


def test_applying_again_leaves_the_number_of_workers(resources: tuple[Resource, ...]) -> None:
    """The manifest has no number of workers, which `kubectl scale` and KEDA set."""
    assert "replicas" not in the(resources, "Deployment", "sag-worker")["spec"]


def test_no_secret_is_in_the_manifests(resources: tuple[Resource, ...]) -> None:
    """The manifests hold no secret: Redis's URL and the keys come from secrets of the operator."""
    assert not [each for each in resources if each["kind"] == "Secret"]
    assert not {"SAG_BROKER_URL", "AWS_SECRET_ACCESS_KEY"} & environment(resources).keys()
    named = {
        each["secretRef"]["name"]: each["secretRef"].get("optional", False)
        for each in container(resources, "sag-worker")["envFrom"]
        if "secretRef" in each
    }
    assert named == {"sag-redis": False, "sag-s3": True, "sag-more": True}


def test_everything_is_in_the_namespace(resources: tuple[Resource, ...]) -> None:
    """Every resource is in the overlay's namespace, not where kubectl happens to point."""
    (namespace,) = {each["metadata"]["namespace"] for each in resources}
    assert namespace in {"sag", "pictures"}


@pytest.mark.parametrize(
    ("name", "component"),
    [each for each in itertools.product(OVERLAYS, COMPONENTS) if each != ("keda", "keda")],
)
def test_a_component_fits_every_overlay(name: str, component: str, tmp_path: Path) -> None:
    """A component fits every overlay: it changes only what it is for, and the result is valid."""
    folders = {
        "resources": KUBERNETES / "overlays" / name,
        "components": KUBERNETES / "components" / component,
    }
    content = {key: [os.path.relpath(folder, tmp_path)] for key, folder in folders.items()}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"namespace": "sag", **content}))
    found, before = rendered(tmp_path), overlay(name)
    for each in found:
        check(each, VERSIONS[-1])
    added = {each["kind"] for each in found} - {each["kind"] for each in before}
    changed = [each["metadata"]["name"] for each in before if each not in found]
    assert (added, changed) == {
        "keda": ({"ScaledObject"}, []),
        "model-volume": ({"PersistentVolumeClaim"}, ["sag-worker"]),
        "writable-root": (set(), ["sag-worker"]),
    }[component]
