"""What the tests of the exporter share: settings over a model of the test's own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationClient
from api_contracts.names import Keys
from worker.broker.held_messages import UNACKED, UNACKED_INDEX
from worker.config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

MODEL = {"path": "/nowhere", "safety_checker": False}


def pool_settings(redis_url: str, namespace: str, **others: object) -> Settings:
    """Settings of a pool that serves model `namespace`, and no other."""
    values = {"broker_url": redis_url, "namespace": namespace, "models": {namespace: MODEL}}
    return Settings.model_validate(values | others)


@pytest.fixture
def settings(redis: Redis, redis_url: str, namespace: str) -> Settings:
    """Settings of an exporter, while no message of another test is held."""
    redis.delete(UNACKED, UNACKED_INDEX)
    return pool_settings(redis_url, namespace)


@pytest.fixture
def keys(namespace: str) -> Keys:
    """The keys of the test's namespace."""
    return Keys(namespace)


@pytest.fixture
def client(redis_url: str, namespace: str) -> Iterator[GenerationClient]:
    """A client that submits."""
    with GenerationClient(redis_url, namespace) as made:
        yield made


def entry(*, slots: int = 16, running: int = 0, refusal: str | None = None) -> str:
    """What a worker tells of itself."""
    return json.dumps(
        {"slots": slots, "running": running, "refusal": refusal, "device": "cpu", "at": 1.5}
    )
