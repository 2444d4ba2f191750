"""The asynchronous client: the same methods, for many tasks at once over few connections."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from api_contracts import (
    AsyncGenerationClient,
    AsyncTaskHandle,
    GenerationCancelled,
    GenerationClient,
    GenerationResult,
    InvalidRequest,
    ServiceUnavailable,
    TaskHandle,
    TaskNotFound,
    TaskStatus,
    WaitTimeout,
)
from api_contracts.client.aio_records import MAX_CONNECTIONS
from api_contracts.events import Queued
from api_contracts.names import Keys
from api_contracts.redis_io.connection import COUNT_S, connect
from tests.record.box import ids_waiting
from tests.record.owners import PROGRESS, RESULT, append, kinds, take, worker
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from worker.record.task_record import TaskRecord

STEPS = 12
PATIENCE_S = 60.0


@pytest.fixture
def run(redis_url: str, namespace: str) -> Callable[..., Any]:
    """Run a coroutine function with an asynchronous client in the test's namespace."""

    def call(body: Callable[[AsyncGenerationClient], Coroutine[Any, Any, Any]]) -> Any:
        async def within() -> Any:
            named = f"{redis_url}?client_name={namespace}"
            async with AsyncGenerationClient(redis_url, namespace, events_url=named) as client:
                return await asyncio.wait_for(body(client), PATIENCE_S)

        return asyncio.run(within())

    return call


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


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis that accepts connections and does not answer."""
    with embedded.redis_server(tmp_path_factory.mktemp("silent")) as url:
        with Redis.from_url(url) as redis:
            process = int(redis.info("server")["process_id"])
        os.kill(process, signal.SIGSTOP)
        yield url
        os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize("turns", range(4))
def test_cancellation_works_while_redis_is_silent(silent: str, turns: int) -> None:
    """A cancelled caller ends, whatever it was doing at that moment."""

    async def body() -> None:
        async with AsyncGenerationClient(silent) as client:
            for wait in (client.handle("t").result(), client.handle("t").status()):
                waiting = asyncio.create_task(wait)
                for _ in range(turns):
                    await asyncio.sleep(0)
                waiting.cancel()
                done, _ = await asyncio.wait([waiting], timeout=12)
                assert done
                assert waiting.cancelled()

    asyncio.run(body())


def test_many_waits_end_in_time(silent: str) -> None:
    """Waits end in time although only a few calls run at once and none is answered."""

    async def body() -> float:
        async with AsyncGenerationClient(silent) as client:
            began_s = asyncio.get_running_loop().time()
            waiting = [client.handle("t").result(timeout=1) for _ in range(4 * MAX_CONNECTIONS)]
            ends = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(end, WaitTimeout) for end in ends)
            return asyncio.get_running_loop().time() - began_s

    assert asyncio.run(body()) < 5


def test_a_silent_broker_does_not_block_records(
    silent: str, redis_url: str, namespace: str
) -> None:
    """Calls for records are answered at once, however many submissions wait for the broker."""

    async def body() -> list[Any]:
        async with AsyncGenerationClient(silent, namespace, events_url=redis_url) as client:
            request_data = {"prompt": "x", "model": namespace}
            submits = [
                client.submit(request_data, f"t{number}") for number in range(2 * MAX_CONNECTIONS)
            ]
            waiting = [asyncio.create_task(each) for each in submits]
            await asyncio.sleep(0)  # each has asked
            assert await asyncio.wait_for(client.status_many(["x"]), COUNT_S / 2) == {"x": None}
            for each in waiting:
                each.cancel()
            return await asyncio.gather(*waiting, return_exceptions=True)

    assert {type(end) for end in asyncio.run(body())} == {asyncio.CancelledError}


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
