"""Starts commands for tests by forking one process that has imported torch and Celery.

`fork_server_main` is that process, `forked_command` what a fork of it runs. The imports cost about
7 s of processor time, a fork costs 0.1 s. A forked command runs the same code as `python -m ...`
does, in a session of its own, with the environment, folder and files that it is given. It differs
in three ways: its imports are done, `/proc/PID/cmdline` and `/proc/PID/environ` are the server's,
and `worker run` forks its own fork server, too.

`TESTS_EXEC=1` has every command executed instead, as `make nightly` does.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.forked_process import Forked
from worker import embedded
from worker.process_guard import guard_children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[1]
#: Variables: the server's socket, and whether commands are executed instead.
ADDRESS, EXEC = "TESTS_FORK_SERVER", "TESTS_EXEC"
#: Time for the server to import everything on a busy machine, in seconds.
START_S = 170.0
#: Pause between two looks whether a process is ready, in seconds.
POLL_INTERVAL_S = 0.02
#: Prefixes of variables that an interpreter and its libraries read when they start.
_READ_AT_START = ("PYTHON", "OMP_", "HF_", "TRANSFORMERS_", "TORCH", "CUDA_", "SAG_METRICS_")


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {each: value for each, value in environment.items() if each.startswith(_READ_AT_START)}


_AT_START = _read_at_start(os.environ)


def restore_environment() -> None:
    """Undo what a library has set for good, as torch's compiler does; else nothing is forked."""
    for name in _read_at_start(os.environ).keys() - _AT_START.keys():
        del os.environ[name]
    os.environ.update(_AT_START)


Process = subprocess.Popen[bytes] | Forked


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    files: tuple[int, int, int],
    cwd: Path | None = None,
) -> Process:
    """Start `[python, -m or -c, ...]`; `files` are its standard input, output and error.

    It is executed, not forked, where its environment changes what an interpreter does at start.
    """
    stdin, stdout, stderr = files
    if not _can_fork(command, environment):
        return subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, cwd=cwd,
            start_new_session=True,
        )  # fmt: skip
    request = {"command": command[1:], "env": dict(environment), "cwd": str(cwd or Path.cwd())}
    connection = _connect()
    socket.send_fds(connection, [json.dumps(request).encode()], list(files))
    return Forked(connection, command)


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    given: str = "",
    cwd: Path | None = None,
    timeout_s: float,
) -> subprocess.CompletedProcess[str]:
    """Start a command with `given` as its input, and wait for its end and all of its output."""
    with ExitStack() as stack:
        stdin, stdout, stderr = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        stdin.write(given.encode())
        stdin.seek(0)
        files = (stdin.fileno(), stdout.fileno(), stderr.fileno())
        process = start(command, environment, files, cwd)
        try:
            status = process.wait(timeout_s)
        finally:
            process.kill()
        for each in (stdout, stderr):
            each.seek(0)
        output, errors = stdout.read().decode(), stderr.read().decode()
    return subprocess.CompletedProcess(list(command), status, output, errors)


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    ready: Callable[[], bool],
    environment: Mapping[str, str],
    stop_s: float = embedded.STOP_TIMEOUT_S,
) -> Iterator[Process]:
    """As `embedded.running`, forked: a process that has become `ready`, ended on leaving."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("SAG_", "AWS_"))
    }
    with log.open("ab") as output, Path(os.devnull).open() as nothing:
        files = (nothing.fileno(), output.fileno(), output.fileno())
        process = start(command, inherited | dict(environment), files)
    try:
        deadline_s = time.monotonic() + embedded.START_TIMEOUT_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline_s:
                tail = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{command[1:]} did not start:\n{tail}")
            time.sleep(POLL_INTERVAL_S)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _can_fork(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    same = _read_at_start(environment) == _AT_START
    is_python = command[0] == sys.executable and command[1] in ("-m", "-c")
    return same and is_python and not os.environ.get(EXEC)


_lock = threading.Lock()
_own: subprocess.Popen[bytes] | None = None


def begin() -> None:
    """Start the server in the background, for this process and those that inherit its address."""
    global _own  # noqa: PLW0603  # one for each test run
    guard_children()
    address = str(Path(tempfile.mkdtemp(prefix="sag-forks-")) / "socket")
    hidden = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    _own = subprocess.Popen(
        [sys.executable, "-m", "tests.fork_server_main", address], cwd=ROOT, env=environment,
        stdin=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    os.environ[ADDRESS] = address


def end() -> None:
    """End the server and all that it forked; nothing where this process has started none."""
    global _own  # noqa: PLW0603  # as above
    if _own is not None:
        assert _own.stdin is not None
        _own.stdin.close()
        _own.wait()
        _own = None
        Path(os.environ.pop(ADDRESS)).parent.rmdir()


def _connect() -> socket.socket:
    with _lock:
        if ADDRESS not in os.environ:
            begin()
            atexit.register(end)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deadline_s = time.monotonic() + START_S
    while True:
        try:
            connection.connect(os.environ[ADDRESS])
        except OSError:
            if time.monotonic() > deadline_s or (_own is not None and _own.poll() is not None):
                raise
            time.sleep(0.05)
        else:
            return connection
