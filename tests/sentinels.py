"""A primary, two replicas and three sentinels, as processes on free loopback ports."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import quote

from redis.exceptions import RedisError

from tests.redis_process import Server, until
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from redis import Redis

MASTER_NAME = "pictures"
REPLICAS, SENTINELS = 2, 3
#: Silence after which sentinels declare a primary dead, and the pause before they try again.
DOWN_AFTER_MS, FAILOVER_TIMEOUT_MS = 1000, 6000
#: How long writes wait during a planned failover, at most: until the sentinels have made a replica
#: of the former primary.
PAUSE_MS = 15_000
#: A primary that has lost its replicas refuses to write: what it took would be lost.
DURABLE = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "5")


class Users(NamedTuple):
    """The text of an ACL file, and the passwords of its users."""

    acl: str
    passwords: Mapping[str, str]


class Watched:
    """The group; a context manager. `url` always leads to the current primary."""

    def __init__(
        self,
        folder: Path,
        executable: str,
        options: Sequence[str] = DURABLE,
        password: str = "",
        tls: Mapping[str, str] | None = None,
        users: Users | None = None,
    ) -> None:
        """`options` are of every Redis; `password` is that of the sentinels, '' for none.

        With `users` every Redis has them, and a replica and a sentinel log in as their own.
        `tls` are files of servers and of their clients, by Redis's names: `cert-file` and so on.
        """
        self._folder, self._executable, self._password = folder, executable, password
        self._tls, self._users = dict(tls or {}), users
        if users is not None:
            (folder / "users.acl").write_text(users.acl)
            own = "--masteruser", "replica", "--masterauth", users.passwords["replica"]
            options = (*options, "--aclfile", str(folder / "users.acl"), *own)
        ports = embedded.free_ports(1 + REPLICAS + SENTINELS)
        first = ports[0]
        self.nodes = [
            Server(
                folder / f"redis{number}",
                self._node(number, port, first, options),
                port,
                **self._client_tls(),
                **self._operator(),
            )
            for number, port in enumerate(ports[: 1 + REPLICAS])
        ]
        login: dict[str, Any] = {"password": password} if password else {}
        login |= self._client_tls()
        self.sentinels = [
            Server(folder / f"sentinel{number}", self._sentinel(number), port, **login)
            for number, port in enumerate(ports[1 + REPLICAS :])
        ]
        hosts = ",".join(f"{embedded.LOOPBACK}:{each.port}" for each in self.sentinels)
        self.url = f"sentinel{'s' * bool(tls)}://{hosts}/0?master_name={MASTER_NAME}"
        if password:
            self.url += f"&sentinel_password={quote(password)}"

    def _node(self, number: int, port: int, first: int, options: Sequence[str]) -> list[str]:
        command = [
            self._executable, *self._listen(port), "--bind", embedded.LOOPBACK,
            "--dir", str(self._folder / f"redis{number}"), "--appendonly", "yes", "--save", "",
            "--maxmemory-policy", "noeviction", "--repl-diskless-sync-delay", "0",
            "--repl-ping-replica-period", "1", *embedded.KEEP_ENVIRONMENT, *options,
        ]  # fmt: skip
        return command + (["--replicaof", embedded.LOOPBACK, str(first)] if number else [])

    def _listen(self, port: int) -> list[str]:
        if not self._tls:
            return ["--port", str(port)]
        files = [text for name, file in self._tls.items() for text in (f"--tls-{name}", file)]
        return ["--port", "0", "--tls-port", str(port), "--tls-replication", "yes", *files]

    def _client_tls(self) -> dict[str, Any]:
        if not self._tls:
            return {}
        names = {"ssl_certfile": "cert-file", "ssl_keyfile": "key-file"}
        files = {ours: self._tls[name] for ours, name in names.items()}
        return {"ssl": True, "ssl_ca_certs": self._tls["ca-cert-file"], **files}

    def _operator(self) -> dict[str, str]:
        if self._users is None:
            return {}
        return {"username": "operator", "password": self._users.passwords["operator"]}

    def _sentinel(self, number: int) -> list[str]:
        config = self._folder / f"sentinel{number}" / "sentinel.conf"
        return [self._executable, str(config), "--sentinel", *embedded.KEEP_ENVIRONMENT]

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
            for server in self.sentinels:
                self._configure(server)
                server.start()
            self.wait_for_replicas()
            until(self._sentinels_agree)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in (*self.sentinels, *self.nodes):
            server.send(signal.SIGKILL)

    def primary(self) -> Server:
        """The node that the sentinels call primary."""
        port = self._ports()[0]
        return next(node for node in self.nodes if node.port == port)

    def connect(self) -> Redis:
        """A connection to the current primary, which is lost when it fails over."""
        return self.primary().connect()

    def fail_over(self, known: Callable[[], object] = bool) -> Server:
        """Have the sentinels promote a replica, as an operator does who wants to lose nothing.

        Returns when they name it; `known` is called before connections to the former one are
        closed. A primary that is not paused goes on taking writes, which are
        lost, for one second with `DURABLE` and some ten without.
        """
        before = self.primary()
        with before.connect() as redis:
            redis.client_pause(PAUSE_MS, all=False)

        def accepted() -> bool:
            with suppress(RedisError), self._ask() as sentinel:
                return bool(sentinel.sentinel_failover(MASTER_NAME))
            return False  # no good replica, or a failover goes on

        until(accepted)
        until(lambda: all(port != before.port for port in self._ports()))
        known()
        with before.connect() as redis:  # else they would wait for it until they time out
            for kind in ("normal", "pubsub"):
                redis.client_kill_filter(_type=kind, skipme=True)
            redis.client_unpause()
        return self.primary()

    def kill_primary(self) -> Server:
        """`kill -9` of the primary; returns it when the sentinels name another one."""
        dead = self.primary()
        dead.send(signal.SIGKILL)
        until(lambda: all(port != dead.port for port in self._ports()))
        return dead

    def wait_for_replicas(self, least: int = REPLICAS) -> None:
        """Return when a sentinel and the primary see so many replicas.

        It takes some ten seconds until the former primary is one.
        """

        def seen() -> bool:
            with suppress(RedisError), self._ask() as sentinel, self.connect() as redis:
                found: Any = sentinel.sentinel_slaves(MASTER_NAME)
                up = [each for each in found if each["flags"] == "slave"]
                info: Any = redis.info("replication")
                ready = [each for name, each in info.items() if name in ("slave0", "slave1")]
                online = [each for each in ready if each["state"] == "online"]
                return min(len(up), len(online)) >= least
            return False

        until(seen)

    def _ports(self) -> list[int]:
        """The port of the primary as each sentinel names it; they learn of a new one in turn."""
        ports = []
        for server in self.sentinels:
            if server.is_up:
                with server.connect() as sentinel:
                    ports.append(sentinel.sentinel_get_master_addr_by_name(MASTER_NAME)[1])
        return ports

    def _ask(self) -> Redis:
        return next(each for each in self.sentinels if each.is_up).connect()

    def _configure(self, server: Server) -> None:
        quorum = SENTINELS // 2 + 1
        listen = self._listen(server.port)
        pairs = zip(listen[::2], listen[1::2], strict=True)
        lines = [
            *(f"{name.removeprefix('--')} {value}" for name, value in pairs),
            f"bind {embedded.LOOPBACK}", f"dir {server.folder}",
            f"sentinel monitor {MASTER_NAME} {embedded.LOOPBACK} {self.nodes[0].port} {quorum}",
            f"sentinel down-after-milliseconds {MASTER_NAME} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {MASTER_NAME} {FAILOVER_TIMEOUT_MS}",
            f"sentinel parallel-syncs {MASTER_NAME} {REPLICAS}",
        ]  # fmt: skip
        if self._password:
            lines += [f"requirepass {self._password}", f"sentinel sentinel-pass {self._password}"]
        if self._users is not None:
            lines += [
                f"sentinel auth-user {MASTER_NAME} sentinel",
                f"sentinel auth-pass {MASTER_NAME} {self._users.passwords['sentinel']}",
            ]
        server.folder.mkdir(parents=True)
        (server.folder / "sentinel.conf").write_text("\n".join(lines) + "\n")

    def _sentinels_agree(self) -> bool:
        for server in self.sentinels:
            with server.connect() as sentinel:
                state: Any = sentinel.sentinel_master(MASTER_NAME)
            if state["num-other-sentinels"] != SENTINELS - 1:
                return False
        return True
