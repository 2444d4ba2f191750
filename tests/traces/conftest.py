"""An OTLP receiver, and what executors with an engine need."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest

from api_contracts.names import Keys
from tests.traces.collector import Collector, collector

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def receiver() -> Iterator[Collector]:
    """An OTLP receiver of the module's own."""
    with collector() as made:
        yield made


@pytest.fixture(scope="module")
def engine_is_imported() -> None:
    """What the engine's thread imports takes seconds, and belongs to no test."""
    importlib.import_module("worker.engine.runner")


@pytest.fixture
def keys(namespace: str) -> Keys:
    """The keys of the test's namespace."""
    return Keys(namespace)
