"""What the tests of the manifests share."""

from __future__ import annotations

import pytest

from tests.deploy.manifests import OVERLAYS, Resource, overlay


@pytest.fixture(params=[*OVERLAYS, "example"])
def resources(request: pytest.FixtureRequest) -> tuple[Resource, ...]:
    """The resources of one overlay, or of the documented example."""
    return overlay(request.param)
