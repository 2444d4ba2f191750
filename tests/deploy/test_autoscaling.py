"""KEDA's ScaledObject: what it asks, and that neither it nor an outage cuts work short."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from tests.deploy.manifests import Resource, container, overlay, pod, the


@pytest.fixture(params=["keda", "example"])
def resources(request: pytest.FixtureRequest) -> tuple[Resource, ...]:
    """The resources of the overlays that have a ScaledObject."""
    return overlay(request.param)


@pytest.fixture
def spec(resources: tuple[Resource, ...]) -> Resource:
    """The spec of the ScaledObject."""
    found: Resource = the(resources, "ScaledObject", "sag-worker")["spec"]
    return found


def test_it_scales_the_workers(spec: Resource) -> None:
    """KEDA scales the deployment of the workers, from zero."""
    assert spec["scaleTargetRef"]["name"] == "sag-worker"
    assert spec["minReplicaCount"] == 0


def test_it_asks_the_exporter_for_the_backlog(
    spec: Resource, resources: tuple[Resource, ...]
) -> None:
    """KEDA asks the exporter for `backlog`, by the name that its own namespace resolves.

    `backlog` is in worker processes and KEDA scales pods, so the target is the processes of a pod:
    one for each of its GPUs. Any work at all is more than 0, so a worker with a running task is
    never one of zero.
    """
    (trigger,) = spec["triggers"]
    service = the(resources, "Service", "sag-exporter")
    url = urlsplit(trigger["metadata"]["url"])
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert (url.hostname, url.port) == (host, service["spec"]["ports"][0]["port"])
    assert (trigger["type"], url.path) == ("metrics-api", "/status")
    assert trigger["metadata"]["valueLocation"] == "backlog"
    gpus = container(resources, "sag-worker")["resources"]["limits"]["nvidia.com/gpu"]
    assert float(trigger["metadata"]["targetValue"]) == float(gpus)
    assert float(trigger["metadata"]["activationTargetValue"]) == 0


def test_the_exporter_may_be_asked(resources: tuple[Resource, ...]) -> None:
    """The exporter's network policy admits KEDA from the namespace of KEDA's own documentation."""
    policy = the(resources, "NetworkPolicy", "sag-exporter")["spec"]
    (rule,) = policy["ingress"]
    (expression,) = rule["from"][0]["namespaceSelector"]["matchExpressions"]
    assert "keda" in expression["values"]
    assert rule["ports"] == [{"port": container(resources, "sag-exporter")["ports"][0]["name"]}]


def test_without_the_exporter_no_worker_is_taken_away(spec: Resource) -> None:
    """Without the exporter KEDA keeps the number of workers, at least one, as tasks may wait.

    With `replicas: 0`, or without `fallback`, it would scale to zero or stay there. Its fallback
    works for this type of metric only.
    """
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"
    assert spec["fallback"]["replicas"] >= 1
    assert [each["metricType"] for each in spec["triggers"]] == ["AverageValue"]


def test_a_worker_has_drained_before_the_next_one_leaves(
    spec: Resource, resources: tuple[Resource, ...]
) -> None:
    """At most one worker at a time is scaled down, after a lull of some minutes."""
    grace_s = pod(resources, "sag-worker")["terminationGracePeriodSeconds"]
    down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    (policy,) = down["policies"]
    assert (policy["type"], policy["value"]) == ("Pods", 1)
    assert policy["periodSeconds"] > grace_s
    assert down["stabilizationWindowSeconds"] > grace_s
    assert spec["cooldownPeriod"] > grace_s
