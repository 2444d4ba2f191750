"""The commands of docs/kubernetes.md, as far as they can be run without a cluster."""

from __future__ import annotations

import re
import shlex

import yaml

from tests.deploy.manifests import (
    COMPONENTS,
    KUBERNETES,
    OVERLAYS,
    PAGE,
    Resource,
    container,
    kubectl,
    overlay,
    pod,
    the,
)
from worker.config.settings import Settings

COMMANDS = [
    shlex.split(line, comments=True)
    for text in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in text.splitlines()
]
#: Variables that are no settings: of boto3 and of the hub's client.
OF_OTHERS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"}


def test_the_documented_secrets_are_those_of_the_pods() -> None:
    """The documented secrets have the names that the pods ask for, and keys that are settings."""
    made: dict[str, Resource] = {}
    for command in COMMANDS:
        if "create" in command:
            printed = kubectl(*command[1:], "--dry-run=client", "--output=yaml")
            found: Resource = yaml.safe_load(printed)
            made[found["metadata"]["name"]] = found
    resources = overlay("gpu")
    assert made.pop("sag")["kind"] == "Namespace"
    named = {
        each["secretRef"]["name"]
        for deployment in ("sag-worker", "sag-exporter")
        for each in container(resources, deployment)["envFrom"]
        if "secretRef" in each
    }
    assert made.keys() == named
    keys = {key for each in made.values() for key in each["data"]}
    assert keys - OF_OTHERS < {f"SAG_{name.upper()}" for name in Settings.model_fields}
    assert keys >= OF_OTHERS | {"SAG_BROKER_URL"}


def test_the_documented_folders_are_there() -> None:
    """The page names each overlay and component, and each named one has its folder."""
    paths = {part for command in COMMANDS for part in command if part.startswith("deploy/")}
    assert {f"deploy/kubernetes/overlays/{each}" for each in OVERLAYS} == paths
    table = re.findall(r"^\| `((?:base|overlays|components)\S*)` \|", PAGE, re.MULTILINE)
    names = [f"overlays/{each}" for each in OVERLAYS] + [
        f"components/{each}" for each in COMPONENTS
    ]
    assert sorted(table) == sorted(["base", *names])
    assert all((KUBERNETES / each / "kustomization.yaml").exists() for each in table)


def test_the_documented_numbers_are_those_of_the_manifests() -> None:
    """The page has the manifests' numbers of probes, end and scaling, and the worker's paths."""
    worker, spec = container(overlay("gpu"), "sag-worker"), pod(overlay("gpu"), "sag-worker")
    for name in ("startup", "readiness", "liveness"):
        probe = worker[f"{name}Probe"]
        command = " ".join(probe["exec"]["command"])
        times = f"{probe['periodSeconds']} s, {probe['failureThreshold']} times"
        assert f"| {name} | `{command}` | {times} |" in PAGE
    assert f"A pod has {spec['terminationGracePeriodSeconds']} s to end" in PAGE
    for mount in worker["volumeMounts"]:
        assert f"\n| `{mount['mountPath']}` |" in PAGE
    scaling = the(overlay("keda"), "ScaledObject", "sag-worker")["spec"]
    assert f"for `cooldownPeriod` ({scaling['cooldownPeriod']} s)" in PAGE
    assert f"at most `maxReplicaCount` ({scaling['maxReplicaCount']})" in PAGE
    assert f"within `pollingInterval` ({scaling['pollingInterval']} s)" in PAGE


def test_the_network_section_names_every_address() -> None:
    """The page names each setting with another server's address; its ports are not allowed yet.

    `SAG_S3_PUBLIC_ENDPOINT_URL` is only written into URLs.
    """
    section = PAGE.partition("\n## Network\n")[2].partition("\n## ")[0]
    fields = Settings.model_fields.keys() - {"s3_public_endpoint_url"}
    addresses = {each for each in fields if each.endswith("_url")} | {"reply_to", "webhook_hosts"}
    named = set(re.findall(r"`((?:SAG|OTEL|HTTPS)_\w+)`", section))
    own = {f"SAG_{each.upper()}" for each in addresses}
    assert named == own | {"OTEL_EXPORTER_OTLP_ENDPOINT", "HTTPS_PROXY"}
    rows = re.findall(r"^\| [^|]+ \| ([^|]*\d[^|]*) \| (?:worker|exporter)", section, re.MULTILINE)
    documented = {int(port) for row in rows for port in re.findall(r"\b\d{2,5}\b", row)}
    policy = the(overlay("gpu"), "NetworkPolicy", "sag-worker")["spec"]
    allowed = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert {4318, 6380, 26379} <= documented
    assert not documented & allowed
