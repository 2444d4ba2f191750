"""Redis's ACL file: each user has the rights it needs and no others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from pydantic import SecretStr
from redis.exceptions import NoPermissionError, RedisError

from api_contracts import (
    GenerationClient,
    GenerationFailed,
    Push,
    PushKind,
    PushState,
    ServiceUnavailable,
    TaskStatus,
)
from api_contracts.names import PRIORITY_SEPARATOR
from api_contracts.redis_io.connection import connect
from tests.hostile.guarded import ACL, GROUP_USERS, USERS, filled_in, introduced, until
from tests.hostile.test_too_large import Taker
from tests.record import owners
from worker import embedded
from worker.broker.held_messages import HeldMessages
from worker.cli.dead_letters import DeadLetters
from worker.config.settings import Settings
from worker.exporter.pool_status import PoolReader
from worker.record.push_queue import PushQueue
from worker.recovery import release
from worker.recovery.reconciler import Reconciler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service
    from tests.hostile.guarded import Guarded

SMALL = {"prompt": "a red circle", "num_inference_steps": 2}
END_S = 120.0


@pytest.fixture(scope="module")
def worker(
    server: Guarded, start_service: Callable[..., AbstractContextManager[Service]]
) -> Iterator[Service]:
    """A worker process as user `worker`, in the namespace of the file."""
    hosts = {
        "webhook_hosts": '["http://127.0.0.1:9"]',
        "webhook_secrets": json.dumps(["whsec_" + "c2Vj" * 8]),
    }
    with start_service(server.url("worker"), namespace="sag", slots="4", **hosts) as running:
        yield running
    assert server.denials() == []


@pytest.fixture
def producer(server: Guarded) -> Iterator[GenerationClient]:
    """A client as user `producer`."""
    with GenerationClient(server.url("producer")) as made:
        yield made


def sag_worker(service: Service, command: str, url: str) -> subprocess.CompletedProcess[str]:
    """A command, run as the user in the URL."""
    return subprocess.run(
        [sys.executable, "-m", "worker", command],
        env={**service.environment, "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path),
             "SAG_BROKER_URL": url},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_everything_needed_is_allowed(
    server: Guarded, worker: Service, producer: GenerationClient
) -> None:
    """A worker and its callers do everything without a refusal by Redis."""
    with GenerationClient(server.url("watcher")) as watcher:
        webhook = {"webhook": "http://127.0.0.1:9/"}  # a private address: it is tried, and fails
        task = producer.submit(SMALL | {"preview_every": 1} | webhook, "ours")
        assert [event.type for event in watcher.handle("ours").events(timeout=END_S)][-1] == (
            "succeeded"
        )
        assert task.result(END_S).images[0].url
        until(lambda: any(push.tries for push in watcher.handle("ours").pushes().values()))
        assert watcher.status_many(["ours", "nobody"]) == {
            "ours": TaskStatus.SUCCEEDED, "nobody": None,
        }  # fmt: skip
        assert watcher.queue_depths() == producer.queue_depths() == {"default": 0}
    with pytest.raises(GenerationFailed):
        producer.submit({"prompt": "x", "scheduler": "nope"}, "refused").result(END_S)
    producer.handle("never-seen").cancel()
    running = producer.submit(
        SMALL | {"num_inference_steps": 150, "num_images_per_prompt": 4}, "long"
    )
    next(event for event in running.events(timeout=END_S) if event.type == "progress")
    assert running.cancel() is TaskStatus.RUNNING
    assert list(running.events(timeout=END_S))[-1].type == "cancelled"
    stranger = Celery("stranger", broker=server.url("producer"), backend=server.url("watcher"))
    answer = stranger.send_task(
        "sag.generate", kwargs={"request": SMALL}, queue="generate.default", priority=5
    )
    assert answer.get(timeout=END_S)["images"]
    assert sag_worker(worker, "health", server.url("worker")).returncode == 0
    assert server.denials() == []


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


def test_a_waiting_task_is_cancelled(server: Guarded, producer: GenerationClient) -> None:
    """A producer can cancel a waiting task."""
    task = producer.submit(SMALL | {"model": "nobodys"}, "waiting")
    assert task.cancel() is TaskStatus.QUEUED
    assert task.status() is TaskStatus.CANCELLED
    with server.connect("operator") as operator:
        operator.delete(*operator.keys("generate.nobodys*"), "sag:open")
    assert server.denials() == []


@pytest.mark.slow
def test_the_documented_raw_message_is_served(server: Guarded, worker: Service) -> None:
    """The script of `docs/calling.md` runs unchanged with the producer's rights."""
    page = (ACL.parents[2] / "docs" / "calling.md").read_text()
    (script,) = re.findall(r"```python\n(import base64, json, uuid\n.*?)```", page, re.DOTALL)
    url = server.url("producer")
    printed = subprocess.run(
        [sys.executable, "-c", script.replace("redis://127.0.0.1:6379/0", url)],
        capture_output=True, text=True, check=True, timeout=END_S,
    ).stdout  # fmt: skip
    assert printed.splitlines()[-1].endswith("succeeded")
    assert server.denials() == []


@pytest.mark.slow
def test_doctor_reports_what_it_may_not_check(server: Guarded, worker: Service) -> None:
    """`doctor` reports that it may not list keys, and checks everything else."""
    asked = sag_worker(worker, "doctor", server.url("worker"))
    assert asked.returncode == 0, asked.stderr
    assert asked.stderr.count("not checked") == 1
    assert "redis broker maxmemory-policy: noeviction" in asked.stderr
    assert {entry["object"] for entry in server.denials()} == {"scan"}
    server.forget_denials()


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


FORBIDDEN: list[list[Any]] = [
    ["FLUSHALL"], ["FLUSHDB"], ["KEYS", "*"], ["SCAN", "0"], ["CONFIG", "SET", "maxmemory", "1"],
    ["CONFIG", "GET", "*"], ["SHUTDOWN"], ["ACL", "LIST"], ["ACL", "LOG"],
    ["CLIENT", "LIST"], ["CLIENT", "KILL", "TYPE", "normal"], ["MONITOR"], ["SAVE"],
    ["MIGRATE", "127.0.0.1", "1", "sag:open", "0", "1"],
    ["REPLICAOF", "NO", "ONE"], ["MODULE", "LIST"], ["SCRIPT", "FLUSH"], ["SCRIPT", "KILL"],
    ["EVAL", "return 1", "0"], ["SELECT", "1"], ["SWAPDB", "0", "1"], ["MOVE", "x", "1"],
    ["RENAME", "sag:open", "x"], ["COPY", "sag:open", "x"], ["GET", "somebody:else"],
    ["SUBSCRIBE", "somebody"], ["PUBLISH", "somebody", "x"], ["PSUBSCRIBE", "*"],
    ["SORT", "sag:open", "BY", "x*", "GET", "y*"], ["OBJECT", "ENCODING", "sag:open"],
]  # fmt: skip
NO_PRODUCER: list[list[Any]] = [
    ["DEL", "sag:{t}:task"], ["UNLINK", "sag:{t}:task"], ["HGETALL", "sag.unacked"],
    ["HGET", "sag.unacked", "tag"],
    ["HSET", "sag.unacked", "tag", "x"], ["ZADD", "sag.unacked_index", 1, "x"],
    ["RPOP", "generate.default"], ["LRANGE", "generate.default", 0, -1],
    ["BRPOP", "generate.default", 1], ["XADD", "sag:dead", "*", "a", "b"], ["INFO"],
    ["GET", "sag:reconciler"], ["HGET", "sag:dead", "x"], ["PUBLISH", "/0.celery.pidbox", "x"],
    ["SADD", "_kombu.binding.celery.pidbox", "x"], ["LPUSH", "a.reply.celery.pidbox", "x"],
    ["SETEX", "celery-task-meta-t", 1, "x"], ["SET", "celery-task-meta-t", "x"],
    ["LPUSH", "celery-task-meta-t", "x"], ["PUBLISH", "celery-task-meta-t", "x"],
    ["EXPIRE", "generate.default", 0], ["EXPIRE", "sag:open", 0], ["PERSIST", "sag:{t}:task"],
    ["EXPIRE", "sag:{t}:task", 0], ["ZREM", "sag:open", "t"], ["GET", "sag:{t}:checkpoint"],
]  # fmt: skip
#: What a watcher may.
READS: list[list[Any]] = [["GET", "celery-task-meta-t"], ["SUBSCRIBE", "celery-task-meta-t"]]
NO_WATCHER: list[list[Any]] = [
    ["LPUSH", "generate.default", "x"], ["HSET", "sag:{t}:task", "status", "x"],
    ["XADD", "sag:{t}:events", "*", "a", "b"], ["ZADD", "sag:open", 1, "x"],
    ["ZADD", "sag:wishes", 1, "x"],
]  # fmt: skip
NO_SCRIPTS: list[list[Any]] = [["EVALSHA", "0" * 40, 0], ["SCRIPT", "LOAD", "return 1"]]
#: What the exporter may not read, or not write.
NO_EXPORTER: list[list[Any]] = [
    ["HGET", "sag.unacked_index", "x"], ["ZRANGE", "sag:wishes", 0, -1], ["HLEN", "sag:{t}:events"],
    ["XRANGE", "sag:dead", "-", "+"], ["HDEL", "sag:pool", "x"], ["HSET", "sag:pool", "x", "y"],
    ["ZADD", "sag:workers", 1, "x"], ["ZREM", "sag:workers", "x"], ["XLEN", "sag:{t}:events"],
    ["XREAD", "STREAMS", "sag:{t}:events", "0"], ["GET", "sag:{t}:checkpoint"],
    ["HGET", "celery-task-meta-t", "x"], ["LLEN", "_kombu.binding.generate.x"],
]  # fmt: skip
NO_WORKER: list[list[Any]] = [
    ["GET", "sagacity"], ["LPUSH", "generated", "x"], ["GET", "sag.unacked_other"],
    ["PUBLISH", "celery", "x"], ["SUBSCRIBE", "sag:other"],
]  # fmt: skip


#: What replicas and sentinels may not: the data, the settings, the stop of the server.
NO_GROUP: list[list[Any]] = [
    ["FLUSHALL"], ["KEYS", "*"], ["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "GET", "*"],
    ["SHUTDOWN"], ["ACL", "LIST"], ["CLIENT", "LIST"], ["MONITOR"], ["EVAL", "return 1", "0"],
    ["SCRIPT", "FLUSH"], ["GET", "sag:reconciler"], ["SUBSCRIBE", "sag:control"],
    ["PUBLISH", "sag:control", "x"], ["HGET", "sag:{t}:task", "request"],
]  # fmt: skip


@pytest.mark.parametrize(
    ("user", "command"),
    [
        *((user, command) for user in USERS[1:] for command in FORBIDDEN),
        *(("worker", command) for command in NO_WORKER),
        *(("producer", command) for command in NO_PRODUCER + READS),
        *(("watcher", command) for command in NO_PRODUCER + NO_WATCHER + NO_SCRIPTS),
        *((user, command) for user in GROUP_USERS for command in NO_GROUP),
        *(("exporter", command) for command in NO_WATCHER + READS + NO_EXPORTER),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, list) else value,
)
def test_everything_else_is_refused(server: Guarded, user: str, command: list[Any]) -> None:
    """Users can't command the server, nor reach keys and channels that are not theirs."""
    with server.connect(user) as redis, pytest.raises(NoPermissionError):
        redis.execute_command(*command)
    server.forget_denials()


def test_a_script_has_the_rights_of_its_user(server: Guarded) -> None:
    """A script has no more rights than the user that runs it."""
    lines = ["return redis.call('HGETALL', 'sag.unacked')", "return redis.call('FLUSHALL')"]
    with server.connect("producer") as redis:
        for line in lines:
            with pytest.raises(RedisError, match=r"(?i)(can't run|permission|not allowed)"):
                redis.evalsha(redis.script_load(line), 0)
    server.forget_denials()


def test_a_user_and_a_password_are_required(server: Guarded) -> None:
    """The passwordless user `default` is off; a wrong password is refused and not repeated."""
    nameless = server.url("worker").replace(f"worker:{server.passwords['worker']}@", "")
    for url in (nameless, server.url("worker").replace("pw-", "pq-")):
        with GenerationClient(url) as client, pytest.raises(ServiceUnavailable) as refused:
            client.submit(SMALL, "x")
        assert "pq-" not in str(refused.value)
    server.forget_denials()


def test_the_client_reports_missing_rights(server: Guarded) -> None:
    """The client raises its own error for calls that its user may not make."""
    with GenerationClient(server.url("watcher")) as watcher:
        for call in (lambda: watcher.submit(SMALL, "x"), lambda: watcher.handle("x").cancel()):
            with pytest.raises(ServiceUnavailable, match="permission"):
                call()
    with GenerationClient(server.url("producer"), namespace="other") as client:
        with pytest.raises(ServiceUnavailable, match="permission"):
            client.handle("x").status()
        with pytest.raises(ServiceUnavailable, match="permission"):
            list(client.handle("x").events(timeout=5))
    server.forget_denials()


def test_a_file_with_a_placeholder_starts_no_redis(executable: str, tmp_path: Path) -> None:
    """Redis does not start with an ACL file in which a placeholder is left."""
    acl = ACL.read_text()
    everyone = USERS + GROUP_USERS
    for user in everyone:
        others = {other: "x" for other in everyone if other != user}
        (tmp_path / "users.acl").write_text(introduced(filled_in(acl, others)))
        command = [executable, "--port", str(embedded.free_port()), "--bind", embedded.LOOPBACK,
                   "--aclfile", str(tmp_path / "users.acl")]  # fmt: skip
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        assert ended.returncode != 0
        assert "users.acl" in ended.stdout


def test_no_user_has_a_category(server: Guarded) -> None:
    """Commands are allowed one by one, never by category, and none is dangerous."""
    with server.connect("operator") as redis:
        dangerous = {*redis.acl_cat("dangerous"), *redis.acl_cat("admin")}
        assert "off" in redis.acl_getuser("default")["flags"]
    for line in ACL.read_text().splitlines():
        _, user, *rules = line.split()
        given = {rule[1:] for rule in rules if rule[0] == "+"}
        if user != "operator":
            assert user in GROUP_USERS or given & dangerous <= {"info"}
            assert not any(name[0] == "@" for name in given)
            assert not {"nopass", "allcommands", "allkeys", "allchannels", "~*", "&*"} & {*rules}
