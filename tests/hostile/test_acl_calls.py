"""Redis's ACL file: each call of a client, worker or exporter is allowed."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from api_contracts import GenerationClient, Push, PushKind, PushState, TaskStatus
from api_contracts.names import PRIORITY_SEPARATOR
from api_contracts.redis_io.connection import connect
from tests.hostile.guarded import ACL, SMALL, until
from tests.hostile.test_too_large import Taker
from tests.record import owners
from worker.broker.held_messages import HeldMessages
from worker.cli.dead_letters import DeadLetters
from worker.config.settings import Settings
from worker.exporter.pool_status import PoolReader
from worker.record.push_queue import PushQueue
from worker.recovery import release
from worker.recovery.reconciler import Reconciler

if TYPE_CHECKING:
    from tests.hostile.guarded import Guarded


def test_every_call_of_a_task_is_allowed(quiet: Guarded) -> None:
    """The rights suffice for a task from submission to push, without a worker process."""
    wanted = SMALL | {"model": "nobodys", "webhook": "http://127.0.0.1:9/"}
    taker = Taker(quiet.url("worker"), "nobodys")
    with (
        connect(quiet.url("worker")) as redis,
        GenerationClient(quiet.url("producer")) as producer,
        GenerationClient(quiet.url("watcher")) as watcher,
    ):
        producer.submit(wanted, "ours")
        taker.take()
        claims = owners.worker(redis, producer.keys, "host:1")
        claim = owners.take(claims, "ours", request=json.dumps(wanted))
        owners.append(claims, claim, "progress", owners.PROGRESS)
        result = owners.RESULT
        assert claims.finish(claim, TaskStatus.SUCCEEDED, result, {"result": result})
        claims.close("ours")
        (due,) = claims.pushes.take(1)
        claims.pushes.settle(due, Push(state=PushState.DELIVERED, tries=1), None)
        taker.got.pop().ack()
        assert [event.seq for event in watcher.handle("ours").events(timeout=5)] == [1, 2, 3, 4]
        assert producer.handle("ours").cancel() is TaskStatus.SUCCEEDED
        assert watcher.handle("ours").pushes()[PushKind.WEBHOOK].state is PushState.DELIVERED
    taker.connection.close()
    assert quiet.denials() == []


@pytest.mark.slow
def test_recovery_is_allowed(quiet: Guarded) -> None:
    """The worker's rights suffice to recover the tasks of a dead worker."""
    settings = Settings(broker_url=SecretStr(quiet.url("worker")))
    with (
        connect(quiet.url("worker")) as redis,
        quiet.connect("operator") as operator,
        GenerationClient(quiet.url("producer")) as producer,
    ):
        messages = HeldMessages(redis)
        pushes = PushQueue(redis, settings.keys, 60)
        reconciler = Reconciler(
            redis, settings.keys, messages, pushes, ["generate.nobodys"], lease_s=0,
            record_ttl_s=60,
        )  # fmt: skip
        operator.zadd("sag:wishes", {"nobody": 0})
        for task_id in ("lost", "late"):
            producer.submit(SMALL | {"model": "nobodys"}, task_id)
        operator.delete(*operator.keys("generate.nobodys*"))
        producer.submit(SMALL | {"model": "nobodys", "deadline_s": 0.001}, "late-too")
        for owner in ("host:1", "host:2"):
            held = json.dumps([{"headers": {"id": "lost"}}, "", "generate.nobodys"])
            operator.hset("sag.unacked", f"{owner}/x", held)
            operator.zadd("sag.unacked_index", {f"{owner}/x": 0})
        assert release.release_owner(settings, "host:2") == 1
        reconciler.start()
        try:
            until(lambda: operator.llen(f"generate.nobodys{PRIORITY_SEPARATOR}5") == 2)
        finally:
            reconciler.close()
        until(lambda: operator.llen("generate.nobodys") == 2)
        assert producer.handle("late-too").status() is TaskStatus.EXPIRED
        assert not operator.exists("sag:wishes")
        operator.delete(*operator.keys("generate.nobodys*"), "sag:open")
    assert quiet.denials() == []


def test_dead_letters_can_be_replayed(server: Guarded) -> None:
    """The worker's rights suffice for `sag-worker dead`."""
    with (
        GenerationClient(server.url("worker")) as client,
        server.connect("operator") as operator,
    ):
        request = json.dumps(SMALL | {"model": "nobodys"})
        operator.xadd("sag:dead", {"task_id": "dead-1", "request": request, "reason": "internal"})
        assert [letter.task_id for letter in DeadLetters(client)] == ["dead-1"]
        assert DeadLetters(client).replay("dead-1") == "dead-1.replay"
        operator.delete(*operator.keys("generate.nobodys*"), "sag:open")
    assert server.denials() == []


def test_the_exporter_is_allowed_what_it_reads(quiet: Guarded) -> None:
    """A reading of queue, workers, pushes and dead letters is refused nothing."""
    with GenerationClient(quiet.url("producer")) as producer:
        producer.submit(SMALL, "waits")
    with quiet.connect("operator") as operator:
        operator.zadd("sag:workers", {"host:w:1": 4e9})
        state = {"slots": 3, "running": 0, "refusal": None, "device": "cpu"}
        operator.hset("sag:pool", "host:w:1", json.dumps(state))
    found = PoolReader(Settings(broker_url=SecretStr(quiet.url("exporter")))).read()
    assert (found.waiting, found.workers_well, found.slots_free) == (1, 1, 3)
    assert found.oldest_wait_s is not None
    assert quiet.denials() == []


def test_every_command_of_a_script_is_allowed() -> None:
    """Users may run every command that their Lua scripts call."""
    given = {line.split()[1]: line.split() for line in ACL.read_text().splitlines()}
    root = ACL.parents[2]
    folders = {
        "api_contracts": ("worker", "producer"),
        "worker/broker": ("worker",),
        "worker/record": ("worker",),
        "worker/exporter": ("exporter",),
    }
    assert len(list((root / "worker").glob("*/lua"))) == len(folders) - 1
    for folder, users in folders.items():
        scripts = list((root / folder).rglob("*.lua"))
        assert scripts
        for script in scripts:
            called = {name.lower() for name in re.findall(r"call\(\s*'(\w+)'", script.read_text())}
            for user in users:
                assert {f"+{name}" for name in called} <= {*given[user]}, script.name


def test_a_producer_with_the_former_rights_submits(server: Guarded) -> None:
    """A producer with its rights from before workers were woken can still submit."""
    with server.connect("operator") as operator:
        operator.execute_command(
            "ACL", "SETUSER", "producer", "-zrange", "resetkeys", "~sag:{*}:task",
            "~sag:{*}:events", "~sag:open", "~sag:wishes", "~generate.*",
        )  # fmt: skip
        operator.zadd("sag.ready.generate.nobodys", {"worker": 0})
        try:
            with GenerationClient(server.url("producer")) as client:
                task = client.submit(SMALL | {"model": "nobodys"})
                assert task.status() is TaskStatus.QUEUED
            (name,) = operator.keys("generate.nobodys*")
            assert operator.llen(name) == 1
        finally:
            operator.delete(*operator.keys("generate.nobodys*"), "sag:open")
            operator.delete("sag.ready.generate.nobodys")
            operator.execute_command("ACL", "LOAD")  # also closes this connection
            server.forget_denials()
