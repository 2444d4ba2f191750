"""One worker process: forked from a server that holds the imports, watched by a pidfd, signalled.

Knows nothing of restarts, queues or settings.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import secrets
import signal
import socket
import sys
from contextlib import suppress
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from worker import logs, metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

logger = logging.getLogger(__name__)

#: `prctl`'s request for a signal at the parent's death, from `linux/prctl.h`.
_PR_SET_PDEATHSIG = 1
#: The module whose import makes a process the server.
PRELOAD = "worker.supervisor.forkserver_preload"

_forks = multiprocessing.get_context("forkserver")
_server: int | None = None


class ChildProcess:
    """A worker process that was started."""

    def __init__(
        self,
        name: str,
        environment: Mapping[str, str],
        work: Callable[[str, str], object],
        form: logs.Form,
    ) -> None:
        """Fork a process that calls `work(name, owner)` and logs in `form`.

        `environment` is what its own adds to the supervisor's.

        Takes tenths of a second, or as long as the imports when there is no server yet or the last
        one died. Raises `OSError` or `EOFError` when a server dies over it.
        """
        self.name = name
        #: Names this process in records, and what it takes from the queue.
        self.owner = f"{socket.gethostname()}:{name}:{secrets.token_hex(4)}"
        _forks.set_forkserver_preload([PRELOAD])
        self._process = _forks.Process(
            target=_become, args=(work, name, self.owner, dict(environment), form), name=name
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._life: int | None = None
        try:
            self._life = os.pidfd_open(self.pid)
        except ProcessLookupError:  # it has ended already
            pass
        except OSError:  # nobody could look after it
            self._process.kill()
            raise

    def status(self) -> int | None:
        """Its exit status, the negative number of a signal that killed it; None while it lives.

        255 also where its server died before it did, and nobody knows. The server's own word is
        not enough: when that dies, its children go on until their tasks have ended.
        """
        if self._life is not None and not wait([self._life], 0):
            return None
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, never to another that was given its number."""
        if self._life is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._life, number)

    def close(self) -> None:
        """Let go of what belongs to an ended process."""
        if self._life is not None:
            os.close(self._life)
            self._life = None
        metrics.forget(self.pid)
        self._process.close()


def end_with_parent(parent: int | None) -> None:
    """Have this process told to end when process `parent` dies, however that dies (Linux only).

    None is for whoever learns of an earlier death by other means.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if parent is not None and os.getppid() != parent:
        sys.exit(f"the parent process {parent} is gone already")


def be_the_server() -> None:
    """Prepare this process for being forked, before it imports anything that starts threads."""
    global _server  # noqa: PLW0603  # what this process is, for all that are forked from it
    _server = os.getpid()
    # Ctrl-C reaches it through the supervisor alone, also before multiprocessing ignores it.
    os.setsid()
    # The children hold its alive pipe open, too, so that alone would not end it. If the supervisor
    # is gone already there are no children, and the pipe does.
    end_with_parent(None)
    # OpenBLAS starts a pool when numpy is loaded. Nothing that takes long is done by it.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # Whether there is a GPU is asked of the driver's library: CUDA itself can't be forked.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"


def _become(
    work: Callable[[str, str], object],
    name: str,
    owner: str,
    environment: dict[str, str],
    form: logs.Form,
) -> None:
    """What a forked process does first of all, and then its work."""
    os.environ.update(environment)
    # A session of its own: Ctrl-C reaches it through the supervisor alone, once.
    os.setsid()
    end_with_parent(_server)
    sys.argv = ["sag-worker", "work", "--name", name, "--owner", owner]
    logs.configure(form)
    if _cuda_was_touched():
        logger.warning("worker %s: CUDA was touched before the fork; it imports anew", name)
        _start_anew()
    work(name, owner)


def _cuda_was_touched() -> bool:
    """Whether this process was forked from one that had initialised CUDA, and so can't."""
    import torch  # noqa: PLC0415  # the server has imported it

    return bool(torch.cuda._is_in_bad_fork())  # noqa: SLF001  # no public name


def _start_anew() -> NoReturn:
    """Be the same worker as a fresh interpreter; process id, parent and its death's signal stay."""
    command = [sys.executable, "-m", "worker", *sys.argv[1:]]
    sys.stderr.flush()
    os.execve(command[0], command, os.environ)  # noqa: S606  # ourselves
