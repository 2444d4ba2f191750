"""Redis's ACL file: each user has the rights that it needs and no others."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import NoPermissionError, RedisError

from api_contracts import GenerationClient, ServiceUnavailable
from tests.hostile.guarded import ACL, GROUP_USERS, SMALL, USERS, filled_in, introduced
from worker import embedded

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hostile.guarded import Guarded

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
