"""Celery's result backend: a final state is never overwritten; states are written together."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from redis.exceptions import ResponseError

from api_contracts.redis_io.address import RedisAddress
from api_contracts.redis_io.connection import connect
from worker import embedded
from worker.broker.celery_overrides import Backend

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis


@pytest.fixture
def backend(redis_url: str) -> Backend:
    """The worker's result backend."""
    return backend_of(redis_url)


def backend_of(redis_url: str) -> Backend:
    """The result backend of a worker with this Redis."""
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


@pytest.fixture
def plain(redis_url: str) -> Celery:
    """An application of someone who has nothing of ours."""
    return Celery("plain", set_as_current=False, backend=redis_url)


def test_states_of_many_tasks_are_what_celery_would_store(
    backend: Backend, plain: Celery, namespace: str, redis: Redis
) -> None:
    """A plain `AsyncResult` reads each state, and the bytes are those that Celery itself stores."""
    meta = {"step": 3, "total_steps": 9}
    running = {
        f"{namespace}-{number}": (meta | {"step": number}, state)
        for number, state in enumerate(("STARTED", "PROGRESS", "PROGRESS"))
    }
    backend.store_running(running)
    for task_id, (result, state) in running.items():
        read = plain.AsyncResult(task_id)
        assert (read.state, read.info) == (state, result)
        key = backend.get_key_for_task(task_id)
        ours, left_s = stored(redis, key), redis.ttl(key)
        assert isinstance(left_s, int)
        assert 0 < left_s <= backend.expires
        plain.backend.store_result(task_id, result, state)
        assert stored(redis, key) == ours


def test_states_of_many_tasks_overwrite_no_final_one(backend: Backend, namespace: str) -> None:
    """Of the tasks of a call only those without a final state get their states."""
    ended, runs = f"{namespace}-ended", f"{namespace}-runs"
    backend.store_result(ended, "made", "SUCCESS")
    backend.store_running({ended: ({}, "PROGRESS"), runs: ({}, "PROGRESS")})
    assert (backend.get_state(ended), backend.get_state(runs)) == ("SUCCESS", "PROGRESS")


def test_a_state_that_cannot_be_written_is_logged_and_stops_no_other(
    backend: Backend, namespace: str, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A state that can't be written is logged and stops no other; alone it raises."""
    odd, good = f"{namespace}-odd", f"{namespace}-good"
    redis.hset(backend.get_key_for_task(odd), "no", "string")
    backend.store_running({odd: ({}, "PROGRESS"), good: ({}, "PROGRESS")})
    assert backend.get_state(good) == "PROGRESS"
    (logged,) = caplog.messages
    assert f"task {odd}: Celery's state not written: WRONGTYPE" in logged
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        backend._set_with_state(backend.get_key_for_task(odd), "{}", "PROGRESS")


def test_states_that_redis_can_not_take_now_raise(tmp_path: Path, namespace: str) -> None:
    """States that Redis can't take for now make the call raise, as a single one does."""
    with embedded.redis_server(tmp_path) as url, connect(url) as redis:
        backend = backend_of(url)
        redis.config_set("maxmemory", 1)
        with pytest.raises(ResponseError, match="OOM"):
            backend.store_running({namespace: ({"step": 1}, "PROGRESS")})
        backend.client.close()


def test_a_written_state_is_announced(backend: Backend, namespace: str, redis: Redis) -> None:
    """A written state is announced on the channel that `AsyncResult.get` follows."""
    key = backend.get_key_for_task(namespace)
    with redis.pubsub(ignore_subscribe_messages=True) as following:
        following.subscribe(key)
        following.get_message(timeout=5)
        backend.store_running({namespace: ({"step": 1}, "PROGRESS")})
        heard = following.get_message(timeout=5)
    assert heard is not None
    assert heard["data"] == redis.get(key)


def stored(redis: Redis, key: bytes) -> Any:
    """What stands under a key, in the order in which it stands there."""
    found = redis.get(key)
    assert isinstance(found, bytes)
    return list(json.loads(found).items())
