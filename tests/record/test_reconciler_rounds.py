"""The reconciler's rounds: election, outages and deadlines."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.exceptions import RedisError

from api_contracts import GenerationClient, GenerationExpired
from api_contracts.names import Keys, queue_lists
from api_contracts.redis_io.connection import connect
from tests.record.box import ids_waiting, lapse_all, post, taken
from tests.record.owners import kinds, lapse, opened, take, told, until
from tests.record.reconcilers import Sent, age, elected, reconciler
from worker import embedded
from worker.broker.held_messages import UNACKED, UNACKED_INDEX, HeldMessages
from worker.recovery import reconciler as module
from worker.recovery.timing import ELECTION_TTL_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from api_contracts.client.sender import Waiting
    from worker.record.task_record import TaskRecord
    from worker.recovery.reconciler import Reconciler


@pytest.fixture
def rounds(redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Reconciler]]:
    """Reconcilers that are closed after the test, with short rounds and no grace period."""
    monkeypatch.setattr(module, "UNAVAILABLE_GRACE_S", 0.0)
    monkeypatch.setattr(module, "RECONCILE_PERIOD_S", 0.02)
    redis.delete(UNACKED, UNACKED_INDEX)
    made: list[Reconciler] = []
    yield made
    for each in made:
        each.close()


def begin(made: Reconciler, rounds: list[Reconciler]) -> Reconciler:
    rounds.append(made)
    made.start()
    made.start()
    return made


def test_expired_messages_are_requeued(redis: Redis, keys: Keys, rounds: list[Reconciler]) -> None:
    """A message whose holder no longer renews it is back in its queue, once; others stay held."""
    post(redis, keys.namespace, "lost", "kept")
    taken(redis, "dead", keys.namespace)
    kept = taken(redis, "alive", keys.namespace)
    lapse_all(redis, "dead")
    begin(reconciler(redis, keys, Sent()), rounds)
    until(lambda: ids_waiting(redis, keys.namespace) == ["lost"])
    assert HeldMessages(redis).held_by("alive") == [kept]
    assert HeldMessages(redis).held_by("dead") == []


def test_one_is_elected_and_another_when_it_leaves(
    redis: Redis, keys: Keys, rounds: list[Reconciler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reconciler of several works; when it is closed or dies, another is elected."""
    done: list[str] = []
    made = {name: reconciler(redis, keys, Sent()) for name in ("first", "second", "third")}
    for name, each in made.items():
        monkeypatch.setattr(each, "run_once", partial(done.append, name))
    first = begin(made["first"], rounds)
    until(lambda: done)
    for name in ("second", "third"):
        begin(made[name], rounds)
    until(lambda: len(done) > 3)
    assert set(done) == {"first"}
    first.close()
    until(lambda: set(done[-2:]) & {"second", "third"})
    heir = done[-1]
    assert set(done) == {"first", heir}
    # Killed: its lock is not released, and expires by itself.
    monkeypatch.setattr(made[heir]._lock, "release", lambda: None)
    made[heir].close()
    assert 0 < redis.pttl(keys.reconciler) <= ELECTION_TTL_S * 1000
    redis.pexpire(keys.reconciler, 1)
    until(lambda: done[-1] not in ("first", heir))


def test_one_that_is_elected_late_was_not_frozen(
    redis: Redis, keys: Keys, rounds: list[Reconciler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reconciler that is elected late begins at once, however long another one was elected."""
    monkeypatch.setattr(module, "ELECTION_TTL_S", 0.3)
    made = reconciler(redis, keys, Sent(), lease_s=0.1)
    redis.set(keys.reconciler, "another's", px=900)
    ran: list[bool] = []
    monkeypatch.setattr(made, "run_once", lambda: ran.append(made._is_just_back()))
    begin(made, rounds)
    until(lambda: ran)
    assert made._failed_s == float("-inf")
    assert ran[0] is False


def test_a_round_that_fails_is_followed_by_another(
    redis: Redis, keys: Keys, rounds: list[Reconciler], task_id: str
) -> None:
    """Whatever goes wrong in a round, the next one follows: other workers wait for the lock."""
    sent = Sent()
    tries: list[Waiting] = []

    def send(message: Waiting) -> None:
        tries.append(message)
        if len(tries) == 1:
            age(redis, keys, task_id)
            raise ValueError("no")
        sent(message)

    redis.delete(*queue_lists(keys.namespace))
    age(redis, keys, task_id)
    made = begin(reconciler(redis, keys, send), rounds)

    def is_sent() -> bool:
        made._walked_s = float("-inf")  # the next walk is due now
        return sent.ids == [task_id]

    until(is_sent)


def test_after_a_restart_every_worker_has_time_to_renew(
    tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker could renew while Redis was down: for a while no expired lease counts."""
    monkeypatch.setattr(module, "UNAVAILABLE_GRACE_S", 3600.0)
    with embedded.redis_server(tmp_path) as url, Redis.from_url(url, protocol=2) as redis:
        post(redis, "m", "t")
        taken(redis, "alive", "m")
        lapse_all(redis, "alive")
        made = reconciler(redis, keys, Sent())
        made.run_once()
        assert ids_waiting(redis, "m") == []
        monkeypatch.setattr(module, "UNAVAILABLE_GRACE_S", 0.0)  # as if the server were that old
        made.run_once()
        assert ids_waiting(redis, "m") == ["t"]


@pytest.mark.usefixtures("rounds")
def test_while_redis_is_full_no_worker_is_taken_for_dead(tmp_path: Path, keys: Keys) -> None:
    """No worker can renew in a full Redis: what expires is requeued only once it has room again."""
    with embedded.redis_server(tmp_path) as url, connect(url) as redis:
        post(redis, "m", "t")
        tag = taken(redis, "alive", "m")
        lapse_all(redis, "alive")
        redis.config_set("maxmemory", 1)
        made = reconciler(redis, keys, Sent())
        with pytest.raises(RedisError, match=r"OOM|maxmemory"):
            made.run_once()
        assert HeldMessages(redis).held_by("alive") == [tag]
        redis.config_set("maxmemory", 0)
        made.run_once()
        assert ids_waiting(redis, "m") == ["t"]


def test_after_a_silence_every_worker_has_time_to_renew(
    tmp_path: Path, keys: Keys, rounds: list[Reconciler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that hung and then answers everything at once has kept workers from renewing, too."""
    monkeypatch.setattr(module, "ELECTION_TTL_S", 0.3)
    with embedded.redis_server(tmp_path) as url, connect(url) as redis:
        until(lambda: redis.info("server")["uptime_in_seconds"] >= 1)
        monkeypatch.setattr(module, "UNAVAILABLE_GRACE_S", 0.5)
        post(redis, "m", "t")
        made, pause = reconciler(redis, keys, Sent()), threading.Event()
        made.start()
        until(lambda: redis.exists(keys.reconciler))
        taken(redis, "alive", "m", lease_s=0.2)
        process = int(redis.info("server")["process_id"])
        os.kill(process, signal.SIGSTOP)
        pause.wait(0.5)
        os.kill(process, signal.SIGCONT)
        began_s = time.monotonic()
        until(lambda: ids_waiting(redis, "m") == ["t"])
        assert time.monotonic() - began_s > 0.4
        made.close()


@pytest.mark.parametrize("where", ["its pause", "a look at the messages", "a walk"])
def test_a_freeze_of_this_process_may_have_frozen_all_workers(
    records: TaskRecord, task_id: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """After a freeze no lease counts as expired until every worker has had time to renew."""
    redis, keys, sent = records.redis, records.keys, Sent()
    take(records, task_id)
    tag = taken(redis, "alive", keys.namespace)
    lapse_all(redis, "alive")
    lapse(redis, keys, task_id)
    age(redis, keys, task_id)
    made = elected(redis, keys, sent)
    clock_s = [time.monotonic()]
    monkeypatch.setattr("worker.recovery.reconciler.time.monotonic", lambda: clock_s[0])
    made._awake_s = made._walked_s = clock_s[0]

    def freeze(result: list[str]) -> list[str]:
        clock_s[0] += ELECTION_TTL_S + 1
        return result

    if where == "its pause":
        made._was_frozen()
        freeze([])
        assert made._was_frozen()
        made.run_once()
    elif where == "a look at the messages":
        monkeypatch.setattr(made._messages, "overdue", lambda: freeze([tag]))
        made.run_once()
    else:
        made._walked_s = float("-inf")
        monkeypatch.setattr(made._messages, "overdue", list)
        monkeypatch.setattr(made._messages, "lists", lambda _: freeze([]))
        made.run_once()
    assert sent.ids == []
    assert redis.zscore(UNACKED_INDEX, tag) == 1.0
    assert made._is_just_back()


@pytest.mark.usefixtures("rounds")
def test_a_queued_task_past_its_deadline_ends(
    client: GenerationClient, redis: Redis, keys: Keys
) -> None:
    """A queued task past its deadline ends once, even if no worker takes it."""
    request_data = {"prompt": "x", "model": keys.namespace, "metadata": {"k": "v"}}
    late = client.submit({**request_data, "deadline_s": 0.001}, "late")
    client.submit({**request_data, "deadline_s": 1000.0}, "early")
    client.submit(request_data, "patient")
    age(redis, keys, "late", "early", "patient")
    until(lambda: redis.time()[0] > float(redis.hget(keys.task("late"), "deadline_at") or 0))
    made = elected(redis, keys, sent := Sent())
    made.run_once()
    made.walk()
    assert sent.letters == []
    last = told(redis, keys, "late")[-1]
    assert (last["type"], last["step"], last["metadata"]) == ("expired", 0, {"k": "v"})
    assert kinds(redis, keys, "late") == ["queued", "expired"]
    assert opened(redis, keys) == {"early", "late", "patient"}
    with pytest.raises(GenerationExpired):
        late.result(timeout=5)


@pytest.mark.usefixtures("rounds")
def test_a_running_task_is_not_ended_by_its_deadline_here(
    client: GenerationClient, records: TaskRecord, redis: Redis, keys: Keys
) -> None:
    """The reconciler ends no running task by its deadline, but does so once it is requeued."""
    client.submit({"prompt": "x", "model": keys.namespace, "deadline_s": 0.001}, "t")
    claim = take(records, "t")
    made = elected(redis, keys, Sent())
    redis.hset(keys.task("t"), "deadline_at", "1.0")
    made.run_once()
    assert kinds(redis, keys, "t") == ["queued", "started"]
    records.requeue(claim, {"reason": "drained"}, counts=False)
    made.run_once()
    assert kinds(redis, keys, "t")[-2:] == ["requeued", "expired"]
