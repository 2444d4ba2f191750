"""One worker process: forked from a fork server, watched by a pidfd, stopped by signals.

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

#: `prctl`'s option for a signal at the parent's death, from `linux/prctl.h`.
_PR_SET_PDEATHSIG = 1

_forks = multiprocessing.get_context("forkserver")
_server_pid: int | None = None


class ChildProcess:
    """A running or exited worker process."""

    def __init__(
        self,
        name: str,
        environment: Mapping[str, str],
        work: Callable[[str, str], object],
        preload: str,
        log_form: logs.Form,
    ) -> None:
        """Fork a process that calls `work(name, owner)`.

        `environment` is added to the supervisor's. `preload` is the module that the fork server
        imports; it must call `become_fork_server`. Takes tenths of a second, or as long as those
        imports when there is no fork server yet or the last one died. Raises `OSError` or
        `EOFError` when the fork server dies meanwhile.
        """
        self.name = name
        #: Identifies this process in records and on the messages that it holds.
        self.owner = f"{socket.gethostname()}:{name}:{secrets.token_hex(4)}"
        _forks.set_forkserver_preload([preload])
        self._process = _forks.Process(
            target=_run, args=(work, name, self.owner, dict(environment), log_form), name=name
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._pidfd: int | None = None
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:  # it has exited already
            pass
        except OSError:  # it could not be watched
            self._process.kill()
            raise

    def status(self) -> int | None:
        """Return the exit status, or minus the signal that killed it; None while it runs.

        The fork server reports the status. If the server dies first, its children drain and exit,
        and their statuses, then unknown, are 255.
        """
        if self._pidfd is not None and not wait([self._pidfd], 0):
            return None
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to this process, never to a later one with the same process id."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Release what belongs to an exited process."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        metrics.remove_process(self.pid)
        self._process.close()


def become_fork_server() -> None:
    """Prepare this process to be forked, before it imports anything that starts threads."""
    global _server_pid  # noqa: PLW0603  # inherited by every process forked from this one
    _server_pid = os.getpid()
    # Ctrl-C reaches it through the supervisor alone, also before multiprocessing ignores SIGINT.
    os.setsid()
    # Its children hold multiprocessing's alive pipe open too, so the pipe alone would not stop it.
    # If the supervisor died before this call, there are no children, and the pipe stops it.
    _stop_with_parent()
    # OpenBLAS starts a thread pool when numpy is loaded, for nothing that is slow here.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # torch asks NVML whether there is a GPU; asking CUDA would make it unusable after the fork.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"


def _stop_with_parent() -> None:
    """Get SIGTERM when the parent process dies, however it dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _run(
    work: Callable[[str, str], object],
    name: str,
    owner: str,
    environment: dict[str, str],
    log_form: logs.Form,
) -> None:
    """Set a forked process up, then do its work."""
    os.environ.update(environment)
    # A session of its own: a Ctrl-C reaches it once, as the supervisor's SIGTERM.
    os.setsid()
    _stop_with_parent()
    if os.getppid() != _server_pid:
        sys.exit("the fork server is gone already")
    sys.argv = ["sag-worker", "work", "--name", name, "--owner", owner]
    logs.configure(log_form)
    if _is_cuda_unusable():
        logger.warning(
            "worker %s: CUDA was initialised before the fork; starting a fresh interpreter", name
        )
        _restart_interpreter()
    work(name, owner)


def _is_cuda_unusable() -> bool:
    """Whether this process was forked from one that had initialised CUDA."""
    torch = sys.modules.get("torch")  # without torch the fork server has not touched CUDA
    return torch is not None and bool(torch.cuda._is_in_bad_fork())  # noqa: SLF001  # no public name


def _restart_interpreter() -> NoReturn:
    """Replace this process by a fresh interpreter; process id, parent and its death signal stay."""
    command = [sys.executable, "-m", "worker", *sys.argv[1:]]
    sys.stderr.flush()
    os.execve(command[0], command, os.environ)  # noqa: S606  # our own interpreter
