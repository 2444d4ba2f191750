"""What the tests of the manifests share."""

from __future__ import annotations

import pytest

from tests.deploy.manifests import OVERLAYS, Resource, overlay


@pytest.fixture(params=OVERLAYS)
def resources(request: pytest.FixtureRequest) -> tuple[Resource, ...]:
    """The resources of one overlay."""
    return overlay(request.param)
