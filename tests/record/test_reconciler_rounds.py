"""The reconciler's rounds: election, failures and deadlines."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationClient, GenerationExpired
from api_contracts.names import Keys, queue_lists
from tests.record.box import ids_waiting, lapse_all, post, taken
from tests.record.owners import kinds, opened, take, told, until
from tests.record.reconcilers import Sent, age, begin, elected, reconciler
from worker.broker.held_messages import HeldMessages
from worker.recovery import reconciler as module
from worker.recovery.timing import ELECTION_TTL_S

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts.client.sender import Waiting
    from worker.record.task_record import TaskRecord
    from worker.recovery.reconciler import Reconciler


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
