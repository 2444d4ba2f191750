"""Celery's result key: an end stays, whoever comes late."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import Celery

from worker.broker.celery_overrides import Backend

if TYPE_CHECKING:
    from redis import Redis


@pytest.fixture
def backend(redis_url: str) -> Backend:
    """The backend as the worker has it."""
    app = Celery(
        "judge", set_as_current=False, backend=f"worker.broker.celery_overrides:Backend+{redis_url}"
    )
    made = app.backend
    assert isinstance(made, Backend)
    return made


@pytest.mark.parametrize("end", ["SUCCESS", "FAILURE", "REVOKED"])
def test_no_state_of_before_is_written_over_an_end(
    backend: Backend, namespace: str, end: str
) -> None:
    """Progress that a frozen worker tells after the end changes nothing."""
    error = ValueError("no")
    backend.store_result(namespace, {"step": 1}, "PROGRESS")
    assert backend.get_state(namespace) == "PROGRESS"
    backend.store_result(namespace, "made" if end == "SUCCESS" else error, end)
    backend.store_result(namespace, {"step": 2}, "PROGRESS")
    backend.store_result(namespace, None, "STARTED")
    assert backend.get_state(namespace) == end


def test_states_live_as_long_as_results(backend: Backend, namespace: str, redis: Redis) -> None:
    """A state that nothing follows is forgotten too."""
    backend.store_result(namespace, {"step": 1}, "PROGRESS")
    left_s = redis.ttl(backend.get_key_for_task(namespace))
    assert isinstance(left_s, int)
    assert 0 < left_s <= backend.expires
