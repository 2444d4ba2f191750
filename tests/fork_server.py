"""Forks the project's commands for tests from one process that has imported torch and Celery.

Those imports cost about 7 s of processor time, a fork costs 0.1 s. A forked command runs the same
code as `python -m ...` does, in a session of its own, with the environment, folder and files that
it is given. It differs in three ways: its imports are done, `/proc/PID/cmdline` and
`/proc/PID/environ` are the server's, and `worker run` forks its own fork server, too.

`TESTS_EXEC=1` has every command executed instead, as `make nightly` does.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

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
#: What every worker imports. Not `worker.cli`: its console reads the environment when imported.
PRELOADED = (
    "celery.bin.celery",
    "celery.apps.worker",
    "rich.live",
    "typer",
    "worker.app",
    "worker.broker.celery_overrides",
    "worker.broker.transport",
    "worker.broker.validate_message",
    "worker.engine.loading.model_loader",
    "worker.engine.runner",
    "worker.engine.device.warmup",
    "worker.execution.image_files",
    "uvicorn.main",
    "fastapi",
)
_REQUEST_BYTES = 200_000
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


class Forked:
    """A forked process, with the part of `subprocess.Popen` that tests use.

    It is killed when the process that asked for it ends or closes its connection.
    """

    def __init__(self, connection: socket.socket, args: Sequence[str]) -> None:
        """`connection` is one on which the request was sent."""
        self.args, self.returncode = list(args), None
        self._connection = connection
        self.pid = int(connection.recv(100))

    returncode: int | None

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; raises `subprocess.TimeoutExpired`."""
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return status

    def _status(self, timeout_s: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout_s)[0]:
            # The server is gone, and has killed all that it forked.
            self.returncode = int(self._connection.recv(100) or -signal.SIGKILL)
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()


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
        [sys.executable, "-m", "tests.fork_server", address], cwd=ROOT, env=environment,
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


class _Server:
    """One thread: takes requests, forks, reports exit statuses."""

    def __init__(self, address: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(address)
        self._listener.listen(100)
        #: Process ids by pidfd, and the connections that they belong to.
        self._pids: dict[int, int] = {}
        self._connections: dict[int, socket.socket] = {}

    def serve(self) -> None:
        """Until standard input ends, which it does with the process that started this one."""
        while True:
            connections = {each.fileno(): life for life, each in self._connections.items()}
            watched = [0, self._listener.fileno(), *self._pids, *connections]
            for number in select.select(watched, [], [])[0]:
                if number == 0:
                    return
                if number == self._listener.fileno():
                    self._take()
                elif number in self._pids:
                    self._report(number)
                elif connections[number] in self._pids:
                    self._drop(connections[number])

    def kill_all(self) -> None:
        """Kill what is left."""
        for pid in self._pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _take(self) -> None:
        connection, _ = self._listener.accept()
        data, files, _, _ = socket.recv_fds(connection, _REQUEST_BYTES, 3)
        if not files:  # its sender has ended
            connection.close()
            return
        pid = os.fork()
        if pid == 0:
            for each in (self._listener, connection, *self._connections.values()):
                each.close()
            for other in self._pids:
                os.close(other)
            _become(json.loads(data), files)
        for file in files:
            os.close(file)
        connection.send(str(pid).encode())
        life = os.pidfd_open(pid)
        self._pids[life], self._connections[life] = pid, connection

    def _report(self, life: int) -> None:
        pid, connection = self._pids.pop(life), self._connections.pop(life, None)
        os.close(life)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if connection is not None:
            with connection, suppress(OSError):
                connection.send(str(status).encode())

    def _drop(self, life: int) -> None:
        """Kill a process whose connection has ended."""
        self._connections.pop(life).close()
        os.kill(self._pids[life], signal.SIGKILL)


def _become(request: dict[str, Any], files: Sequence[int]) -> NoReturn:
    """Be the command, in a process that was just forked."""

    def work() -> None:
        _replace(request, files)
        _call(request["command"])

    _leave(_status_of(work))


def _status_of(work: Callable[[], None]) -> int:
    """Call `work`; the status with which an interpreter would end after it."""
    try:
        work()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  # an interpreter prints what nothing has caught
        traceback.print_exc()
        return 1
    return 0


def _replace(request: dict[str, Any], files: Sequence[int]) -> None:
    """Take the command's session, files, environment and signals."""
    os.setsid()
    for number, each in enumerate(files):
        os.dup2(each, number)
        os.close(each)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=-1 if not os.isatty(1) else 1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    util.spawnv_passfds = _fork_instead  # type: ignore[assignment]  # `str` is all that it is given
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        import coverage

        coverage.process_startup(force=True)


def _call(command: Sequence[str]) -> None:
    way, what, *arguments = command
    sys.path[0] = str(Path.cwd())
    if way == "-m":
        sys.argv = [what, *arguments]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *arguments]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


def _leave(status: int) -> NoReturn:
    """End as an interpreter does: wait for threads that are no daemons, then call `atexit`'s."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # what an interpreter calls
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _fork_instead(_path: str, args: Sequence[str], kept: Sequence[int]) -> int:
    """Stands for multiprocessing's way to execute its fork server and its resource tracker."""
    code = os.fsdecode(args[list(args).index("-c") + 1])
    pid = os.fork()
    if pid:
        return pid
    for each in [int(file.name) for file in Path("/proc/self/fd").iterdir()]:
        if each > 2 and each not in kept:
            with suppress(OSError):
                os.close(each)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _leave(_status_of(lambda: exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})))


def main() -> None:
    """Import, then serve at the address in the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a pool of threads would not survive a fork
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    for name in PRELOADED:
        importlib.import_module(name)
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "threads would not survive a fork"
    gc.collect()
    gc.freeze()
    address = sys.argv[1]
    server = _Server(address)
    try:
        server.serve()
    finally:
        server.kill_all()
        Path(address).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
