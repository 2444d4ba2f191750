"""The asynchronous client has the same methods, and waits end."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts import (
    AsyncGenerationClient,
    AsyncTaskHandle,
    GenerationCancelled,
    GenerationClient,
    GenerationResult,
    ServiceUnavailable,
    TaskHandle,
    TaskNotFound,
    TaskStatus,
    WaitTimeout,
)
from api_contracts.client.aio_records import MAX_CONNECTIONS
from api_contracts.events import Queued
from api_contracts.names import Keys
from tests.record.owners import PROGRESS, RESULT, append, kinds, take
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from worker.record.task_record import TaskRecord


@pytest.mark.parametrize(
    ("one", "other"),
    [(GenerationClient, AsyncGenerationClient), (TaskHandle, AsyncTaskHandle)],
)
def test_both_clients_have_the_same_surface(one: type, other: type) -> None:
    """Both clients have the same methods, arguments and defaults."""

    def surface(kind: type) -> dict[str, list[str]]:
        return {
            name: [
                str(each).split(":")[0] for each in inspect.signature(member).parameters.values()
            ]
            for name, member in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert surface(other) == surface(one)


def test_a_task_is_submitted_followed_and_cancelled(
    run: Callable[..., Any], redis: Redis, namespace: str, records: TaskRecord
) -> None:
    """A task passes through every method of the client."""

    async def body(client: AsyncGenerationClient) -> None:
        request_data = {"prompt": "x", "model": namespace}
        handle = await client.submit(request_data, "one")
        assert (await client.submit(request_data, "one")).task_id == "one"
        assert await client.queue_depths([namespace, "nobodys"]) == {namespace: 2, "nobodys": 0}
        assert await handle.status() is TaskStatus.QUEUED
        claim = take(records, "one")
        assert await client.status_many(["one", "two"]) == {"one": TaskStatus.RUNNING, "two": None}
        assert records.finish(claim, TaskStatus.SUCCEEDED, RESULT, {"result": RESULT})
        assert await handle.result(timeout=5) == GenerationResult.model_validate(RESULT)
        assert await handle.cancel() is TaskStatus.SUCCEEDED
        assert [event.seq async for event in handle.events(after=1)] == [2, 3]
        other = await client.submit(request_data, "other")
        first = await anext(other.events())
        assert isinstance(first, Queued)
        assert first.position == 2  # both of the first task's messages
        assert await other.cancel() is TaskStatus.QUEUED
        with pytest.raises(GenerationCancelled):
            await other.result(timeout=5)
        assert await client.handle("never").cancel() is None

    run(body)
    assert kinds(redis, Keys(namespace), "one") == ["queued", "started", "succeeded"]


def test_waiting_ends(run: Callable[..., Any], namespace: str) -> None:
    """A wait ends by its timeout, for an unknown task, or when the caller is cancelled."""

    async def body(client: AsyncGenerationClient) -> None:
        handle = await client.submit({"prompt": "x", "model": namespace})
        with pytest.raises(WaitTimeout):
            await handle.result(timeout=0.2)
        with pytest.raises(WaitTimeout):
            [event async for event in handle.events(timeout=0.2)]
        for wait in (client.handle("nobody").result(), client.handle("nobody").status()):
            with pytest.raises(TaskNotFound):
                await wait
        waiting = [asyncio.create_task(handle.result()) for _ in range(2 * MAX_CONNECTIONS)]
        await asyncio.sleep(0)
        for each in waiting:
            each.cancel()
        assert all(
            isinstance(each, asyncio.CancelledError)
            for each in await asyncio.gather(*waiting, return_exceptions=True)
        )
        assert await handle.cancel() is TaskStatus.QUEUED
        with pytest.raises(GenerationCancelled):
            await handle.result(timeout=5)

    run(body)


def test_new_events_arrive_at_once(
    run: Callable[..., Any], namespace: str, records: TaskRecord
) -> None:
    """New events arrive at once, not when a blocking read times out."""

    async def body(client: AsyncGenerationClient) -> None:
        handle = await client.submit({"prompt": "x", "model": namespace}, "t")
        events = handle.events(timeout=30)
        assert (await anext(events)).type == "queued"
        for number in range(5):
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            if number == 0:
                claim = take(records, "t")
            else:
                append(records, claim, "progress", PROGRESS)
            event = await asyncio.wait_for(waiting, 2.0)
            assert event.seq == number + 2

    run(body)


def test_redis_away_is_reported(no_backoff: None) -> None:
    """Without Redis calls raise `ServiceUnavailable` in seconds, and a wait ends by its timeout."""

    async def body() -> None:
        (port,) = embedded.free_ports(1)
        async with AsyncGenerationClient(f"redis://127.0.0.1:{port}/0") as client:
            for call in (
                client.submit({"prompt": "x"}),
                client.submit_many([{"prompt": "x"}]),
                client.handle("t").status(),
                client.handle("t").cancel(),
                client.queue_depths(),
            ):
                with pytest.raises(ServiceUnavailable):
                    await call
            with pytest.raises(WaitTimeout):
                await client.handle("t").result(timeout=0.3)

    asyncio.run(body())


def test_closing_the_client_ends_waits(run: Callable[..., Any], namespace: str) -> None:
    """Closing the client ends pending waits with an error."""

    async def body(client: AsyncGenerationClient) -> None:
        handle = await client.submit({"prompt": "x", "model": namespace})
        waiting = asyncio.create_task(handle.result())
        while not client._records._watcher._waiters:  # noqa: ASYNC110  # the wait has begun
            await asyncio.sleep(0)
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await asyncio.wait_for(waiting, 5)

    run(body)


def test_a_caught_cancellation_is_not_raised_again(run: Callable[..., Any], namespace: str) -> None:
    """A caller that caught a cancellation can go on following."""

    async def body(client: AsyncGenerationClient) -> None:
        handle = await client.submit({"prompt": "x", "model": namespace})
        events = handle.events(timeout=0.5)
        assert (await anext(events)).type == "queued"

        async def stubborn() -> str:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                with pytest.raises(WaitTimeout):
                    await anext(events)
            return "went on"

        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        task.cancel()
        assert await task == "went on"

    run(body)
