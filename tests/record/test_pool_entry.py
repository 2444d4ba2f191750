"""What a process tells of itself in `ns:pool`: when it is written, and when it goes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from api_contracts.names import ready_key
from worker.broker.held_messages import HeldMessages
from worker.config.settings import Settings
from worker.recovery import release
from worker.recovery.active_tasks import ActiveTasks
from worker.recovery.lease import Lease
from worker.recovery.pool_entry import REWRITE_PERIOD_S, WorkerState, stale_after_s
from worker.recovery.release import release_owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from redis import Redis

    from api_contracts.names import Keys

OWNER = "host:w:1"


class Told:
    """A state that a test changes."""

    def __init__(self) -> None:
        self.state = WorkerState(slots=4, running=0, refusal=None, device="cpu")

    def change(self, **fields: object) -> None:
        """Tell something else from now on."""
        self.state = self.state.model_copy(update=fields)


@pytest.fixture
def told() -> Told:
    """The state of the process."""
    return Told()


@pytest.fixture
def lease(redis: Redis, keys: Keys, told: Told) -> Lease:
    """A lease whose thread is not started."""
    return Lease(
        redis, keys, ActiveTasks(), HeldMessages(redis), list, 60.0,
        owner=OWNER, state=lambda: told.state,
    )  # fmt: skip


@pytest.fixture
def written(redis: Redis, keys: Keys) -> Callable[[], dict[str, Any] | None]:
    """Takes the entry out of Redis; None if none was written since."""

    def take() -> dict[str, Any] | None:
        raw: Any = redis.hget(keys.pool, OWNER)
        redis.delete(keys.pool)
        return json.loads(raw) if raw else None

    return take


def test_an_entry_is_written_when_it_changes(
    lease: Lease, told: Told, written: Callable[[], dict[str, Any] | None]
) -> None:
    """A pool entry is written when it changes, not with each renewal, and has its time.

    An idle process makes few commands.
    """
    lease.renew()
    first = written()
    assert first is not None
    assert first.pop("at") > 1.7e9
    assert first == {"slots": 4, "running": 0, "refusal": None, "device": "cpu"}
    lease.renew()
    assert written() is None
    for change in ({"running": 1}, {"refusal": "leaving"}, {"running": 0}):
        told.change(**change)
        lease.renew()
        entry = written()
        assert entry is not None
        assert change.items() <= entry.items()
        lease.renew()
        assert written() is None


def test_an_unchanged_entry_is_written_again_after_a_while(
    lease: Lease, written: Callable[[], dict[str, Any] | None]
) -> None:
    """An unchanged entry is written again after a while, so that a removed one comes back."""
    lease.renew()
    assert written()
    lease._pool._written_s -= REWRITE_PERIOD_S / 2
    lease.renew()
    assert written() is None
    lease._pool._written_s -= REWRITE_PERIOD_S / 2
    lease.renew()
    assert written()


def test_an_entry_that_was_not_written_is_written_with_the_next_renewal(
    lease: Lease, redis: Redis, keys: Keys, written: Callable[[], dict[str, Any] | None]
) -> None:
    """An entry that a failed pipeline did not write is written with the next renewal."""
    redis.set(keys.workers, "x")
    with pytest.raises(ResponseError):
        lease.renew()
    redis.delete(keys.workers)
    written()
    lease.renew()
    assert written()


def test_an_entry_goes_with_its_process(lease: Lease, redis: Redis, keys: Keys) -> None:
    """An entry is removed when its process leaves, and when a later one of its name starts."""
    others = {"host:w:0": 1.0, "gone:w:1": 1.0, "gone:x:1": 4e9}
    redis.zadd(keys.workers, others)
    redis.hset(keys.pool, mapping=dict.fromkeys(others, "{}"))
    lease.renew()
    lease.clear_predecessors()
    left = {b"gone:x:1", OWNER.encode()}
    assert set(redis.hkeys(keys.pool)) == set(redis.zrange(keys.workers, 0, -1)) == left
    lease._leave()
    assert redis.hkeys(keys.pool) == redis.zrange(keys.workers, 0, -1) == [b"gone:x:1"]


def test_the_entry_of_a_dead_process_goes_with_its_messages(
    redis: Redis, redis_url: str, keys: Keys
) -> None:
    """The supervisor removes a dead process's entry at once, so that its slots do not count."""
    redis.zadd(keys.workers, {OWNER: 4e9, "host:w:2": 4e9})
    redis.hset(keys.pool, mapping={OWNER: "{}", "host:w:2": "{}"})
    settings = Settings(broker_url=SecretStr(redis_url), namespace=keys.namespace)
    release_owner(settings, OWNER)
    assert redis.hkeys(keys.pool) == redis.zrange(keys.workers, 0, -1) == [b"host:w:2"]


class Unready(HeldMessages):
    """Messages of a broker that takes no process from the ready ones while the test says so."""

    fails = True

    def retire(self, owner: str, queues: Iterable[str]) -> None:
        """Raise, or retire."""
        if self.fails:
            raise RedisConnectionError("the broker is away")
        super().retire(owner, queues)


def test_the_entry_goes_while_the_broker_is_away(redis: Redis, keys: Keys) -> None:
    """An entry is removed also while the broker, perhaps another server, is away."""
    redis.zadd(keys.workers, {OWNER: 4e9})
    redis.hset(keys.pool, OWNER, "{}")
    Lease(redis, keys, ActiveTasks(), Unready(redis), list, 60.0, owner=OWNER)._leave()
    assert redis.hkeys(keys.pool) == redis.zrange(keys.workers, 0, -1) == []


def test_predecessors_stay_listed_until_they_are_retired(redis: Redis, keys: Keys) -> None:
    """A predecessor stays listed until a round has retired it; then nothing of it is left."""
    redis.zadd(keys.workers, {"gone:w:1": 1.0})
    redis.hset(keys.pool, "gone:w:1", "{}")
    redis.zadd(ready_key("q"), {"gone:w:1": 1.0})
    lease = Lease(
        redis, keys, ActiveTasks(), messages := Unready(redis), list, 60.0,
        owner=OWNER, queues=["q"],
    )  # fmt: skip
    with pytest.raises(RedisConnectionError):
        lease.clear_predecessors()
    messages.fails = False
    lease.clear_predecessors()
    assert redis.hkeys(keys.pool) == redis.zrange(keys.workers, 0, -1) == []
    assert redis.zrange(ready_key("q"), 0, -1) == []


def test_a_dead_process_is_removed_while_the_broker_fails(
    redis: Redis, redis_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead process is removed while the broker fails, and the error lets the supervisor retry."""
    redis.zadd(keys.workers, {OWNER: 4e9})
    redis.hset(keys.pool, OWNER, "{}")
    monkeypatch.setattr(release, "HeldMessages", Unready)
    settings = Settings(broker_url=SecretStr(redis_url), namespace=keys.namespace)
    with pytest.raises(RedisConnectionError):
        release_owner(settings, OWNER)
    assert redis.hkeys(keys.pool) == redis.zrange(keys.workers, 0, -1) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"\xff", b"[]", b"{}",
        b'{"slots": 0, "running": 0, "refusal": null, "device": "x"}',
    ],
)  # fmt: skip
def test_an_entry_of_another_kind_is_not_understood(raw: bytes) -> None:
    """An entry that another version or program has written is read as None, not as an error."""
    assert WorkerState.parse(raw) is None


def test_more_fields_are_ignored() -> None:
    """Unknown fields of an entry are ignored, as a later version may tell more."""
    raw = b'{"slots": 2, "running": 1, "refusal": null, "device": "x", "at": 1, "new": []}'
    assert WorkerState.parse(raw) == WorkerState(slots=2, running=1, refusal=None, device="x")


@pytest.mark.parametrize(("lease_s", "after_s"), [(2, 30.0), (15, 30.0), (60, 120.0)])
def test_a_silent_process_is_stale_after_two_leases(lease_s: float, after_s: float) -> None:
    """A silent process is stale after two leases, and not before half a minute."""
    assert stale_after_s(lease_s) == after_s
