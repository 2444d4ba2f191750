"""Waiting for a message: who is woken, by whom, and what happens when that is lost."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from api_contracts import GenerationClient, names
from api_contracts.redis_io.connection import connect
from api_contracts.redis_io.scripts import load
from tests.record.box import Box, ids_waiting, letter, post
from tests.record.owners import until
from worker import embedded
from worker.broker import queue_watch
from worker.broker.held_messages import UNACKED, UNACKED_INDEX, HeldMessages, new_tag
from worker.broker.intake import BLOCK_S, TAKE, WOKEN_S, Intake, WaitingList
from worker.broker.queue_watch import QueueWatch, WaitState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis


@pytest.fixture
def queue(redis: Redis, namespace: str) -> Iterator[str]:
    """The queue of the test's own model; its lists are deleted afterwards."""
    yield names.queue_name(namespace)
    redis.delete(*names.queue_lists(namespace), names.ready_key(names.queue_name(namespace)))


@pytest.fixture
def box(redis_url: str, namespace: str) -> Iterator[Box]:
    """A consumer of the test's own model."""
    made = Box(redis_url, namespace)
    yield made
    made.close()


def woken(redis: Redis, *owners: str) -> list[str]:
    """Those of the owners that were woken."""
    return [owner for owner in owners if redis.exists(f"{names.WAKE_PREFIX}{owner}")]


def wait(box: Box) -> None:
    """Have a consumer wait for a message, of which there is none."""
    with pytest.raises(TimeoutError):
        box.connection.drain_events(timeout=0.05)


def ask(
    redis: Redis, namespace: str, owner: str, tasks: int, *, leaves: bool = True, below: int = 1000
) -> Any:
    """Ask for a message as a worker that runs `tasks` tasks."""
    lists = names.queue_lists(namespace)
    origins = [part for each in names.PRIORITIES for part in (names.queue_name(namespace), each)]
    return load(redis, "worker.broker", "take")(
        unacked=UNACKED, unacked_index=UNACKED_INDEX, wake=f"{names.WAKE_PREFIX}{owner}",
        lists=lists, tag=new_tag(owner), lease_s=30, max_bytes=10**6, owner=owner, tasks=tasks,
        leaves=leaves and tasks > 0, woken_s=WOKEN_S, below=below,
        origins=origins,
    )  # fmt: skip


def test_a_submission_wakes_a_worker_that_waits(
    redis: Redis, redis_url: str, namespace: str, queue: str, box: Box
) -> None:
    """A submission wakes a waiting worker, which takes the message and then is not ready."""
    wait(box)
    assert redis.zscore(names.ready_key(queue), namespace) == 0
    with GenerationClient(redis_url, namespace) as client:
        client.submit({"prompt": "x", "model": namespace}, "t")
        (message,) = box.drain()
    assert message.headers["id"] == "t"
    assert redis.zscore(names.ready_key(queue), namespace) is None
    assert woken(redis, namespace) == []


def test_a_submission_needs_no_worker(
    redis: Redis, redis_url: str, namespace: str, queue: str
) -> None:
    """A submission succeeds without a waiting worker, and where their set is of another type."""
    with GenerationClient(redis_url, namespace) as client:
        client.submit({"prompt": "x", "model": namespace}, "t1")
        redis.sadd(names.ready_key(queue), "x")
        client.submit({"prompt": "x", "model": namespace}, "t2")
    assert ids_waiting(redis, namespace) == ["t1", "t2"]
    assert ask(redis, namespace, "owner", 0)[0] == 5  # the other type is deleted
    assert redis.type(names.ready_key(queue)) == b"none"


def test_scripts_are_loaded_again(redis: Redis, redis_url: str, namespace: str, queue: str) -> None:
    """A submission is complete also in a restarted Redis, which knows no script."""
    redis.zadd(names.ready_key(queue), {"a": 0})
    redis.script_flush()
    with GenerationClient(redis_url, namespace) as client:
        client.submit({"prompt": "x", "model": namespace}, "t")
    assert (ids_waiting(redis, namespace), woken(redis, "a")) == (["t"], ["a"])
    redis.delete(f"{names.WAKE_PREFIX}a")


@pytest.mark.parametrize(
    ("priority", "expected"), [(3, ["b", "c"]), (9, ["b", "c"]), (2, ["b", "c", "a"])]
)
def test_those_with_the_fewest_tasks_are_woken(
    redis: Redis, redis_url: str, namespace: str, queue: str, priority: int, expected: list[str]
) -> None:
    """Each message wakes the ready worker with the fewest tasks that has a slot for it."""
    ready = {"a": names.URGENT_ONLY + 1, "b": 0, "c": 3}
    redis.zadd(names.ready_key(queue), ready)
    with GenerationClient(redis_url, namespace) as client:
        for number in range(1, 4):
            client.submit({"prompt": "x", "model": namespace, "priority": priority})
            assert set(woken(redis, *"abc")) == set(expected[:number])
    redis.delete(*(f"{names.WAKE_PREFIX}{each}" for each in "abc"))


def test_a_busy_worker_leaves_messages_to_idle_ones(
    redis: Redis, namespace: str, queue: str
) -> None:
    """A busy worker wakes idle ones for messages, and takes what is more than they will take."""
    redis.zadd(names.ready_key(queue), {"idle": 0, "busier": 5})
    post(redis, namespace, "t1")
    assert ask(redis, namespace, "busy", 2) == -2  # left; itself and the busier one are ready
    assert woken(redis, "idle", "busier") == ["idle"]
    post(redis, namespace, "t2")
    index, entry, others = ask(redis, namespace, "busy", 2)
    assert (index, json.loads(entry)["headers"]["id"], others) == (5, "t1", 2)
    assert ask(redis, namespace, "idle", 0)[2] == 1  # the busier one
    redis.delete(f"{names.WAKE_PREFIX}idle")


def test_only_workers_that_look_at_the_same_lists_are_counted(
    redis: Redis, namespace: str, queue: str, box: Box
) -> None:
    """A worker counts the waiting workers that look at all of its lists."""
    redis.zadd(names.ready_key(queue), {f"urgent{each}": 1016 + each for each in range(99)})
    assert ask(redis, namespace, "idle", 0) == 1
    assert ask(redis, namespace, "urgent", 1016, below=2000) == 101
    state = WaitState()
    watch = QueueWatch(redis, state, namespace)
    lists = [WaitingList(names.queue_list(queue, each), queue, each) for each in names.PRIORITIES]
    for _ in range(4):
        watch.look(lists)
    assert state.ready == 1
    for _ in range(4):
        watch.look(lists[:3])
    assert state.ready == 101


def test_an_idle_worker_leaves_nothing(redis: Redis, namespace: str, queue: str) -> None:
    """Among idle workers the first to ask takes the message."""
    redis.zadd(names.ready_key(queue), {"other": 0})
    post(redis, namespace, "t")
    assert ask(redis, namespace, "first", 0)[0] == 5
    assert woken(redis, "other") == []


def test_a_woken_worker_that_died_is_waited_for_once(
    redis: Redis, namespace: str, queue: str
) -> None:
    """A woken worker counts as dead after a tenth of a second; a busy one takes its message."""
    redis.zadd(names.ready_key(queue), {"dead": 0})
    post(redis, namespace, "t")
    assert isinstance(ask(redis, namespace, "busy", 2), int)
    seconds, _ = redis.time()
    redis.zadd(names.ready_key(queue), {"dead": seconds - 1})
    assert ask(redis, namespace, "busy", 2)[0] == 5
    assert redis.zscore(names.ready_key(queue), "dead") is None
    redis.delete(f"{names.WAKE_PREFIX}dead")


@pytest.mark.parametrize("dead", [1, 60])
def test_dead_workers_delay_a_busy_one_by_a_tenth_of_a_second(
    redis: Redis, namespace: str, queue: str, monkeypatch: pytest.MonkeyPatch, dead: int
) -> None:
    """Dead workers, however many, delay a busy one once, by a tenth of a second."""
    clock_s = [1000.0]
    monkeypatch.setattr("worker.broker.intake.time.monotonic", lambda: clock_s[0])
    redis.zadd(names.ready_key(queue), {f"dead{each}": 0 for each in range(dead)})
    redis.zadd(names.ready_key(queue), {"hostile": 1e15})
    busy = Simulated(redis, namespace, lists_of(namespace))
    busy.tasks = 3
    post(redis, namespace, "t")
    busy.step()
    assert busy.tasks == 3
    clock_s[0] += WOKEN_S
    busy.step()
    assert busy.tasks == 4
    for each in redis.keys(f"{names.WAKE_PREFIX}dead*"):
        redis.delete(each)


class Simulated:
    """A worker that takes messages by `Intake`, over a real Redis and a clock of the test's."""

    def __init__(self, redis: Redis, owner: str, lists: list[WaitingList]) -> None:
        self.redis, self.owner, self.lists, self.tasks = redis, owner, lists, 0
        self.intake = Intake(owner, 30, WaitState())

    def step(self) -> None:
        """Make the next call, if it may be made and, where it waits, is answered."""
        if self.intake.pause_s > 0 or self.tasks == 16:
            return
        name, *arguments = self.intake.next_call(self.lists, self.tasks)
        if name == "BLPOP":
            answer = self.redis.lpop(arguments[0])
            if answer is None:
                return
        else:
            answer = self.redis.eval(TAKE.source, *arguments[1:])
        if self.intake.answered(answer) is not None:
            self.tasks += 1


@pytest.mark.parametrize("sends", ["a client", "plain Celery"])
def test_nine_messages_are_spread_over_three_workers(
    redis: Redis, redis_url: str, namespace: str, queue: str, monkeypatch: pytest.MonkeyPatch,
    sends: str,
) -> None:  # fmt: skip
    """Nine messages are spread evenly over three workers, however fast one of them is."""
    clock_s = [1000.0]
    monkeypatch.setattr("worker.broker.intake.time.monotonic", lambda: clock_s[0])
    workers = [Simulated(redis, f"{namespace}-{each}", lists_of(namespace)) for each in "abc"]
    fast, *slow = workers
    for each in workers:
        each.step()
    if sends == "a client":
        with GenerationClient(redis_url, namespace) as client:
            client.submit_many([{"prompt": "x", "model": namespace}] * 9)
    else:
        post(redis, namespace, *(f"t{number}" for number in range(9)))
        QueueWatch(redis, WaitState(), fast.owner).look(lists_of(namespace))
    for number in range(200):
        clock_s[0] += 0.0005
        fast.step()
        if number % 4 == 0:
            for each in slow:
                each.step()
    assert [each.tasks for each in workers] == [3, 3, 3]
    redis.delete(*(f"{names.WAKE_PREFIX}{each.owner}" for each in workers))


def test_one_worker_alone_does_not_pause(
    redis: Redis, namespace: str, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker alone fills its slots at once, without a pause."""
    monkeypatch.setattr("worker.broker.intake.time.monotonic", lambda: 1000.0)
    alone = Simulated(redis, namespace, lists_of(namespace))
    post(redis, namespace, *(f"t{number}" for number in range(20)))
    for _ in range(20):
        alone.step()
    assert alone.tasks == 16


def lists_of(namespace: str) -> list[WaitingList]:
    queue = names.queue_name(namespace)
    return [WaitingList(names.queue_list(queue, each), queue, each) for each in names.PRIORITIES]


@pytest.fixture
def watch(redis: Redis, namespace: str) -> Iterator[QueueWatch]:
    """The watch of a worker, its thread not started."""
    made = QueueWatch(redis, WaitState(), namespace)
    yield made
    made.close()


def test_a_message_that_woke_no_worker_is_found(
    redis: Redis, namespace: str, queue: str, watch: QueueWatch
) -> None:
    """A waiting worker finds a message that woke none, and wakes the one with the fewest tasks."""
    redis.zadd(names.ready_key(queue), {namespace: 2, "idle": 0})
    watch.look(lists_of(namespace))
    assert woken(redis, namespace, "idle") == []
    redis.lpush(queue, json.dumps(letter("plain")))
    watch.look(lists_of(namespace))
    assert woken(redis, namespace, "idle") == ["idle"]
    redis.delete(f"{names.WAKE_PREFIX}idle")


def test_a_worker_that_looks_twice_in_vain_wakes_itself(
    redis: Redis, namespace: str, queue: str, watch: QueueWatch
) -> None:
    """A worker that looks twice in vain wakes itself, as the one it woke may be dead."""
    redis.zadd(names.ready_key(queue), {f"{namespace}-dead{each}": 0 for each in range(9)})
    redis.lpush(queue, json.dumps(letter("plain")))
    watch.look(lists_of(namespace))
    assert woken(redis, namespace) == []
    watch.look(lists_of(namespace))
    assert woken(redis, namespace) == [namespace]
    redis.delete(f"{names.WAKE_PREFIX}{namespace}")


@pytest.mark.parametrize("odd", ["another type", "a replica"])
def test_an_error_of_the_wait_ends_no_worker(tmp_path: Path, namespace: str, odd: str) -> None:
    """A worker takes messages again after its wake key was of another type, or Redis a replica."""
    with embedded.redis_server(tmp_path) as url, connect(url) as redis:
        box = Box(url, namespace)
        wait(box)
        if odd == "a replica":
            redis.replicaof("127.0.0.1", "1")
            with suppress(TimeoutError, RedisConnectionError):  # Celery reconnects
                box.connection.drain_events(timeout=0.3)
            redis.replicaof("NO", "ONE")
        else:
            box.channel.client.connection.disconnect()  # the wait is over
            redis.hset(f"{names.WAKE_PREFIX}{namespace}", "x", "1")
            wait(box)
        post(redis, namespace, "t")

        def is_taken() -> bool:
            redis.lpush(f"{names.WAKE_PREFIX}{namespace}", 1)
            return taken_by(box) == ["t"]

        until(is_taken)
        box.close()


def taken_by(box: Box) -> list[str]:
    """Ids of what a consumer gets within a moment."""
    try:
        return [message.headers["id"] for message in box.drain(0.3)]
    except (TimeoutError, RedisConnectionError):
        return []


def test_a_worker_that_waits_stops_at_once(redis_url: str, namespace: str) -> None:
    """A worker that waits stops at once, not when Redis ends its wait."""
    box = Box(redis_url, namespace)
    wait(box)
    began_s = time.monotonic()
    box.close()
    assert time.monotonic() - began_s < BLOCK_S / 2


def test_a_worker_that_redis_forgot_wakes_itself(
    redis: Redis, namespace: str, queue: str, watch: QueueWatch
) -> None:
    """A worker that Redis forgot wakes itself, so that messages are taken all the same."""
    redis.lpush(queue, json.dumps(letter("plain")))
    watch.look(lists_of(namespace))
    assert woken(redis, namespace) == [namespace]
    redis.delete(f"{names.WAKE_PREFIX}{namespace}")


@pytest.mark.parametrize(("ready", "period_s"), [(0, 0.015), (1, 0.015), (100, 1.5), (1000, 2.0)])
def test_the_more_wait_the_more_seldom_each_looks(ready: int, period_s: float) -> None:
    """The more workers wait the more seldom each looks, until each looks every two seconds."""
    state = WaitState()
    state.ready = ready
    assert state.period_s == pytest.approx(period_s)


def test_a_worker_that_waits_for_urgent_messages_looks_seldom(queue: str) -> None:
    """A worker that waits for urgent messages only looks less often than one without tasks."""
    state = WaitState()
    lists = [WaitingList(names.queue_list(queue, each), queue, each) for each in names.PRIORITIES]
    state.begin(lists[:3])
    assert state.period_s == pytest.approx(0.1)
    state.begin(lists)
    assert state.period_s == pytest.approx(0.015)


def test_only_a_worker_that_waits_looks(
    redis: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker looks for messages only while it waits; a busy one asks nothing of Redis."""
    monkeypatch.setattr(queue_watch, "STOP_CHECK_S", 0.02)
    state = WaitState()
    watch = QueueWatch(redis, state, namespace)
    looked: list[int] = []
    monkeypatch.setattr(watch, "look", lambda lists: looked.append(len(lists)))
    watch.start()
    state.begin(lists_of(namespace))
    until(lambda: len(looked) >= 2)
    state.end()
    assert set(looked) == {10}
    watch.close()
    watch._thread.join(5)
    assert not watch._thread._thread.is_alive()


def test_a_requeued_message_wakes_a_worker(redis: Redis, namespace: str, queue: str) -> None:
    """A dead worker's message that is requeued wakes one that waits, before any look."""
    post(redis, namespace, "t")
    ask(redis, namespace, "dead", 0)
    redis.zadd(names.ready_key(queue), {"idle": 0})
    (tag,) = HeldMessages(redis).held_by("dead")
    assert HeldMessages(redis).requeue(tag)
    assert woken(redis, "idle") == ["idle"]
    redis.delete(f"{names.WAKE_PREFIX}idle")


def test_a_worker_that_leaves_is_woken_no_more(redis: Redis, namespace: str, queue: str) -> None:
    """A worker that leaves is woken no more, and nothing of it stays in Redis."""
    ask(redis, namespace, "leaving", 0)
    redis.lpush(f"{names.WAKE_PREFIX}leaving", 1)
    HeldMessages(redis).retire("leaving", [queue])
    assert redis.zscore(names.ready_key(queue), "leaving") is None
    assert woken(redis, "leaving") == []
