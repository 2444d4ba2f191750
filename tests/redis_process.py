"""A Redis or sentinel process that tests kill and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.exceptions import RedisError

from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

#: Longest wait for what a server brings about, in seconds.
WAIT_S = 60.0


class Server:
    """One Redis or sentinel process, which can be killed and started again on its port."""

    def __init__(self, folder: Path, command: Sequence[str], port: int, **login: Any) -> None:
        """`login` are redis-py's arguments of a connection that may send PING."""
        self.folder, self.command, self.port, self.login = folder, list(command), port, login
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        until(self._answers)

    @property
    def is_up(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal; after one that ends it, wait for its end."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)
            if number in (signal.SIGKILL, signal.SIGTERM):
                self._process.wait(WAIT_S)

    def connect(self) -> Redis:
        """A connection of its own."""
        return Redis(embedded.LOOPBACK, self.port, socket_timeout=5, protocol=2, **self.login)

    def _answers(self) -> bool:
        assert self.is_up, (self.folder / "log").read_text()
        with suppress(RedisError), self.connect() as redis:
            return bool(redis.ping())
        return False


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that a server brings about."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)
