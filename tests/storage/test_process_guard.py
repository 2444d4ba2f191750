"""After the end of a process, however it ends, nothing that it started keeps running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import fork_server
from tests.service.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the guard needs /proc")

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("guarded.py")
#: Names the processes of one test in their environment.
TRACE = "GUARD_TEST"
#: Redis, two orphans and the child of one, one that ignores SIGTERM, one that is frozen, one
#: that was started by a thread which has ended.
STARTED = 7
#: A run of pytest whose fixtures start Redis, SeaweedFS and a worker.
SUITE = """
import time
from contextlib import contextmanager, suppress
from pathlib import Path

def test_forever(redis_url, service):
    Path("ready").touch()
    time.sleep(600)
"""


def processes(trace: str) -> dict[int, str]:
    """The command of each running process with that trace, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has exited, or belongs to another user
            continue
        if f"{TRACE}={trace}".encode() in variables:
            found[int(folder.name)] = command
    return found


def guards(pid: int) -> list[str]:
    """The guards of a process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has exited
            command = (folder / "cmdline").read_text().replace("\0", " ")
            if f"process_guard.py {pid}-" in command:
                found.append(command)
    return found


def wait_until_empty(trace: str, pid: int, within_s: float = 30.0) -> None:
    """Return when no process is left, and no guard."""
    deadline_s = time.monotonic() + within_s
    while (left := processes(trace)) or guards(pid):
        assert time.monotonic() < deadline_s, left
        time.sleep(0.05)


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[str]:
    """The trace of this test; what it leaves running is killed."""
    yield str(tmp_path)
    for pid in processes(str(tmp_path)):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def start(command: list[str], trace: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a session of its own, killed at the end.

    It does not know that `make` is its ancestor, or of the fork server of this test run.
    """
    hidden = ("MAKELEVEL", fork_server.ADDRESS)
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    process = subprocess.Popen(
        command, env={**variables, "PYTHONPATH": str(ROOT), TRACE: trace}, cwd=trace,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def program_id(process: subprocess.Popen[str]) -> int:
    """Wait until the program has started everything; gives its process id."""
    assert process.stdout is not None
    ready, pid = process.stdout.readline().split()
    assert ready == "ready"
    return int(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_children_die_with_their_parent(trace: str, number: signal.Signals) -> None:
    """A server, orphans in sessions of their own, and processes that SIGTERM does not end."""
    with start([sys.executable, str(PROGRAM), trace], trace) as process:
        pid = program_id(process)
        wait_until(lambda: len(processes(trace)) == STARTED + 1)
        wait_until(lambda: len(guards(pid)) == 1)
        process.send_signal(number)
        wait_until_empty(trace, pid)
        assert process.wait() == -number


def test_a_program_dies_with_make(trace: str, tmp_path: Path) -> None:
    """`kill -9` of `make` ends what it runs, and everything below."""
    (tmp_path / "Makefile").write_text(f"run:\n\t@{sys.executable} {PROGRAM} {trace}\n")
    with start(["make"], trace) as process:
        pid = program_id(process)
        wait_until(lambda: len(processes(trace)) == STARTED + 2)
        process.kill()
        wait_until_empty(trace, pid)


def test_a_guard_leaves_with_its_process(trace: str) -> None:
    """One guard for each process, which holds no pipe open and ends when there is nothing to do."""
    code = (
        "import os; from worker.process_guard import guard_children as guard; guard(); guard();"
        "print('ready', os.getpid(), flush=True); input()"
    )
    with start([sys.executable, "-c", code], trace) as process:
        pid = program_id(process)
        wait_until(lambda: len(guards(pid)) == 1)
        output, _ = process.communicate("\n", timeout=30)
        assert (output, process.returncode) == ("", 0)
        wait_until_empty(trace, pid)


@pytest.mark.slow  # it loads a worker; the program above is its fast form
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("executed", ["", "1"], ids=["forked", "executed"])
def test_a_killed_test_run_leaves_nothing(
    trace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    executed: str,
) -> None:
    """With the suite's own fixtures: no Redis, SeaweedFS, supervisor or worker is left."""
    monkeypatch.setenv("TESTS_EXEC", executed)  # workers are forked by the suite's own server else
    workers = ("worker run", "forkserver") if executed else ("tests.fork_server",)
    (tmp_path / "test_forever.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-q", "test_forever.py"]
    with start(command, trace) as process:
        wait_until(lambda: process.poll() is not None or (tmp_path / "ready").exists())
        running = " ".join(processes(trace).values())
        assert all(each in running for each in ("redis", "weed", *workers))
        process.send_signal(number)
        wait_until_empty(trace, process.pid, 60.0)
