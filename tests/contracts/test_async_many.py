"""The asynchronous client: many tasks at once over few connections."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from api_contracts import AsyncGenerationClient, GenerationClient, InvalidRequest, TaskStatus
from api_contracts.client.aio_records import MAX_CONNECTIONS
from api_contracts.names import Keys
from api_contracts.redis_io.connection import connect
from tests.contracts.conftest import PATIENCE_S
from tests.record.box import ids_waiting
from tests.record.owners import PROGRESS, RESULT, append, take, worker
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from worker.record.task_record import TaskRecord

STEPS = 12


@pytest.mark.parametrize("tasks", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_many_are_followed_at_once_through_a_restart(tmp_path: Path, tasks: int) -> None:
    """Many followers each see every event once and in order, over the connections of one pool."""
    port, keys = embedded.free_port(), Keys("many")
    ids = [f"t{number}" for number in range(tasks)]
    restarted = threading.Event()

    with ExitStack() as before:
        url = before.enter_context(embedded.redis_server(tmp_path, port))

        def write() -> None:
            """Write as a worker does, step by step for all tasks; Redis restarts in the middle."""
            with connect(url) as redis:
                records = worker(redis, keys, "worker")
                taken = [take(records, each) for each in ids]
                for step in range(STEPS):
                    if step == STEPS // 2:
                        before.close()
                        before.enter_context(embedded.redis_server(tmp_path, port))
                        restarted.set()
                    for claim in taken:
                        _until_written(records, claim)
                for claim in taken:
                    assert records.finish(claim, TaskStatus.SUCCEEDED, RESULT, {"result": RESULT})

        async def follow(client: AsyncGenerationClient) -> tuple[list[list[int]], int]:
            async def one(task_id: str) -> list[int]:
                return [event.seq async for event in client.handle(task_id).events(timeout=50)]

            following = [asyncio.create_task(one(each)) for each in ids]
            await asyncio.to_thread(restarted.wait, PATIENCE_S)
            seen = await asyncio.gather(*following)
            with Redis.from_url(url) as redis:
                named = [each for each in redis.client_list() if each["name"] == "followers"]
            return seen, len(named)

        async def whole() -> tuple[list[list[int]], int]:
            with ThreadPoolExecutor(1) as beside:
                named = f"{url}?client_name=followers"
                async with AsyncGenerationClient(url, "many", events_url=named) as client:
                    await client.submit_many([{"prompt": "x"}] * tasks, ids)
                    writing = beside.submit(write)
                    found = await follow(client)
                    await asyncio.wrap_future(writing)
                    return found

        seen, connections = asyncio.run(whole())
    assert seen == [list(range(1, STEPS + 4))] * tasks
    assert connections <= MAX_CONNECTIONS + 1


def _until_written(records: TaskRecord, claim: Any) -> None:
    """Append one event; an event that was written before the restart is not repeated."""
    with suppress(RedisError):
        append(records, claim, "progress", PROGRESS)


def test_many_are_checked_before_any_is_sent(
    run: Callable[..., Any], client: GenerationClient, redis: Redis, namespace: str
) -> None:
    """Each error names its request; there must be as many different ids as requests."""
    good: dict[str, Any] = {"prompt": "x", "model": namespace}
    wrong: list[dict[str, Any]] = [good, good | {"nope": 1, "steps": 2}, good, {}]

    async def body(other: AsyncGenerationClient) -> None:
        for call in (other.submit_many(wrong), other.submit_many([good, good], ["a", "a"])):
            with pytest.raises(InvalidRequest):
                await call

    run(body)
    with pytest.raises(InvalidRequest) as refused:
        client.submit_many(wrong)
    assert {fault.where for fault in refused.value.faults} == {
        "[1].nope",
        "[1].steps",
        "[3].prompt",
    }
    for ids in (["a"], ["a", "a"], ["a", "a/b"], []):
        with pytest.raises(InvalidRequest, match="task_id"):
            client.submit_many([good, good], ids)
    assert ids_waiting(redis, namespace) == []
    assert client.status_many(["a"]) == {"a": None}


def test_many_are_sent_in_their_order(
    client: GenerationClient, redis: Redis, namespace: str
) -> None:
    """`submit_many` sends a message for each request, in their order, and none for a running id."""
    ids = [f"m{number}" for number in range(50)]
    handles = client.submit_many([{"prompt": "x", "model": namespace}] * 50, ids)
    assert [handle.task_id for handle in handles] == ids
    assert ids_waiting(redis, namespace) == ids
    redis.script_flush()
    assert client.submit_many([]) == []
    take(worker(redis, client.keys, "w"), "m0")
    client.submit_many([{"prompt": "y", "model": namespace}] * 2, ["m0", "fresh"])
    assert ids_waiting(redis, namespace) == [*ids, "fresh"]
