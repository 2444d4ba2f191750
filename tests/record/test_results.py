"""Celery's result backend: a final state is never overwritten."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import Celery

from api_contracts.redis_io.address import RedisAddress
from worker.broker.celery_overrides import Backend

if TYPE_CHECKING:
    from redis import Redis


@pytest.fixture
def backend(redis_url: str) -> Backend:
    """The worker's result backend."""
    address = RedisAddress.parse(redis_url)
    app = Celery(
        "judge",
        set_as_current=False,
        backend=f"worker.broker.celery_overrides:Backend+{address.url}",
        result_backend_transport_options={"address": address},
    )
    made = app.backend
    assert isinstance(made, Backend)
    return made


@pytest.mark.parametrize("end", ["SUCCESS", "FAILURE", "REVOKED"])
def test_a_late_state_does_not_overwrite_a_final_one(
    backend: Backend, namespace: str, end: str
) -> None:
    """A late progress state does not overwrite a final one."""
    error = ValueError("no")
    backend.store_result(namespace, {"step": 1}, "PROGRESS")
    assert backend.get_state(namespace) == "PROGRESS"
    backend.store_result(namespace, "made" if end == "SUCCESS" else error, end)
    backend.store_result(namespace, {"step": 2}, "PROGRESS")
    backend.store_result(namespace, None, "STARTED")
    assert backend.get_state(namespace) == end


def test_states_live_as_long_as_results(backend: Backend, namespace: str, redis: Redis) -> None:
    """A progress state has the time to live of a result."""
    backend.store_result(namespace, {"step": 1}, "PROGRESS")
    left_s = redis.ttl(backend.get_key_for_task(namespace))
    assert isinstance(left_s, int)
    assert 0 < left_s <= backend.expires
