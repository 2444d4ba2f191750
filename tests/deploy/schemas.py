"""Checks a resource against the schemas that Kubernetes and KEDA publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
from jsonschema import Draft202012Validator, ValidationError

if TYPE_CHECKING:
    from tests.deploy.manifests import Resource

#: The oldest version of Kubernetes that docs/kubernetes.md names, and the newest that is known.
VERSIONS = ["1.29", kubernetes_validate.latest_version()]
SCALED_OBJECT = Path(__file__).parent / "keda-2.20.2-scaledobject.json"


def check(resource: Resource, version: str) -> None:
    """Raise a `ValidationError` of the package that knows the kind; unknown fields are refused."""
    if resource["kind"] != "ScaledObject":
        kubernetes_validate.validate(resource, version, strict=True)
        return
    schema: dict[str, Any] = json.loads(SCALED_OBJECT.read_text())
    Draft202012Validator(schema).validate(resource)
    # The only rule of the definition that a JSON Schema can't say.
    if resource["spec"]["minReplicaCount"] > resource["spec"]["maxReplicaCount"]:
        raise ValidationError("minReplicaCount is more than maxReplicaCount")
