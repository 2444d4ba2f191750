"""The pods of the manifests: rights, volumes, probes, and a stop that waits for the drain."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from tests.deploy.health_time import LONGEST_HEALTH_S
from tests.deploy.manifests import (
    DEPLOYMENTS,
    ROOT,
    Resource,
    container,
    environment,
    pod,
    settings,
)
from worker.cli import main
from worker.supervisor.supervisor import KILL_DELAY_S

PROBES = ["startupProbe", "readinessProbe", "livenessProbe"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_a_pod_has_the_least_rights(resources: tuple[Resource, ...], deployment: str) -> None:
    """A pod has what the restricted Pod Security Standard asks for, and a read-only root."""
    spec, main_container = pod(resources, deployment), container(resources, deployment)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert main_container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    kinds = {kind for each in spec["volumes"] for kind in each.keys() - {"name"}}
    assert kinds <= {"emptyDir", "persistentVolumeClaim"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
    assert spec["automountServiceAccountToken"] is False


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_a_pod_gets_no_variables_of_services(
    resources: tuple[Resource, ...], deployment: str
) -> None:
    """A pod gets no variables of Services: one named sag-metrics would set SAG_METRICS_PORT."""
    assert pod(resources, deployment)["enableServiceLinks"] is False


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_a_pod_runs_as_the_image_does(resources: tuple[Resource, ...], deployment: str) -> None:
    """A pod runs as the Dockerfile's user, by number, so that the image's folders are its own."""
    (user,) = re.findall(r"useradd --uid (\d+)", (ROOT / "Dockerfile").read_text())
    context = pod(resources, deployment)["securityContext"]
    assert {context["runAsUser"], context["runAsGroup"]} == {int(user)}


def test_what_the_worker_writes_to_is_a_volume(resources: tuple[Resource, ...]) -> None:
    """Volumes are the temporary folder, the working directory and the Dockerfile's HF_HOME.

    `test_read_only` runs a worker that can write to these alone.
    """
    text = (ROOT / "Dockerfile").read_text()
    home, cache = re.findall(r"WORKDIR (/home\S*)", text) + re.findall(r"HF_HOME=(\S+)", text)
    mounts = container(resources, "sag-worker")["volumeMounts"]
    assert {each["mountPath"] for each in mounts} == {"/tmp", home, cache}
    volumes = pod(resources, "sag-worker")["volumes"]
    assert {each["name"] for each in mounts} == {each["name"] for each in volumes}


def test_a_drain_ends_before_the_kill(resources: tuple[Resource, ...]) -> None:
    """A pod's grace period outlasts the drain, the process's exit and the supervisor's kill.

    A killed worker's tasks wait for their leases, and the attempt counts. From SIGTERM: the drain,
    the time in which a process may still store results, and the time after which the supervisor
    kills it.
    """
    found, spec = settings(resources), pod(resources, "sag-worker")
    longest_s = found.drain_timeout_s + found.exit_timeout_s + KILL_DELAY_S
    assert spec["terminationGracePeriodSeconds"] > longest_s


def test_probes_are_commands_of_the_worker(resources: tuple[Resource, ...]) -> None:
    """A pod is ready while it would claim a task, and is restarted when it is silent.

    Redis's absence restarts nothing: the running tasks go on then.
    """
    worker = container(resources, "sag-worker")
    commands = [worker[probe]["exec"]["command"] for probe in PROBES]
    ready = ["sag-worker", "health"]
    assert commands == [[*ready, "--alive"], ready, [*ready, "--alive"]]
    for command in commands:
        assert CliRunner().invoke(main.app, [*command[1:], "--help"]).exit_code == 0


def test_a_probe_has_time_to_say_that_redis_is_away(resources: tuple[Resource, ...]) -> None:
    """A probe has more time than `health` takes, as its failure would end running tasks."""
    worker = container(resources, "sag-worker")
    assert all(worker[probe]["timeoutSeconds"] > LONGEST_HEALTH_S for probe in PROBES)
    startup, liveness = worker["startupProbe"], worker["livenessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 300
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 600


def test_only_gpu_workers_ask_for_a_gpu(resources: tuple[Resource, ...]) -> None:
    """A worker asks for exactly one GPU where its device is CUDA's, and for none on the CPU."""
    asked = container(resources, "sag-worker")["resources"]
    gpus = [asked[each].get("nvidia.com/gpu") for each in ("requests", "limits")]
    device = environment(resources)["SAG_DEVICE"]
    assert (device, gpus) in [("cuda:0", ["1", "1"]), ("cpu", [None, None])]
