"""After an outage or a freeze workers have time to renew before a lease counts as expired."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.exceptions import RedisError

from api_contracts.redis_io.connection import connect
from tests.record.box import ids_waiting, lapse_all, post, taken
from tests.record.owners import lapse, take, until
from tests.record.reconcilers import Sent, age, elected, reconciler
from worker import embedded
from worker.broker.held_messages import UNACKED_INDEX, HeldMessages
from worker.recovery import reconciler as module
from worker.recovery.timing import ELECTION_TTL_S

if TYPE_CHECKING:
    from pathlib import Path

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord
    from worker.recovery.reconciler import Reconciler


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
