"""The supervisor's processes and signals, over stub workers that are forked as workers are."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.conftest import END_S, wait_until
from worker import embedded

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

PROGRAM = Path(__file__).with_name("program.py")


class Run:
    """A running supervisor and what its workers have recorded."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process, self.folder = process, folder

    @property
    def log(self) -> str:
        """The supervisor's log."""
        return (self.folder / "log").read_text()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records of all workers that have begun their work, the newest last."""
        files = sorted(self.folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        return [json.loads(file.read_text()) for file in files]

    def newest(self, name: str) -> dict[str, Any]:
        """The record of the latest worker of a slot."""
        return [each for each in self.records if each["name"] == name][-1]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """Start the program with a kind of stub; it is ready with `ready` records."""

    @contextmanager
    def start(kind: str, *, grace_s: float = 60.0, ready: int = 2) -> Iterator[Run]:
        command = [sys.executable, str(PROGRAM), kind, str(tmp_path), str(grace_s)]

        def is_ready() -> bool:
            return len(list(tmp_path.glob("*.json"))) >= ready

        try:
            with embedded.running(command, tmp_path / "log", is_ready) as process:
                yield Run(process, tmp_path)
        finally:
            for file in tmp_path.glob("*.json"):
                with suppress(ProcessLookupError):
                    os.kill(json.loads(file.read_text())["pid"], signal.SIGKILL)

    return start


def is_running(pid: int) -> bool:
    """Whether a process exists and has not exited."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def is_logged(supervisor: Run, words: str) -> bool:
    """Whether the supervisor's log has the words."""
    return words in supervisor.log


def test_a_worker_has_its_place_and_is_replaced_there(run: Callable[..., Any]) -> None:
    """Each worker has a GPU, an owner name and a session of its own, below the fork server.

    After `kill -9` of one another is in its place, from the same server, within a second or so.
    """
    with run("orderly") as supervisor:
        first, second = (supervisor.newest(name) for name in ("gpu1", "gpu2"))
        assert (first["gpu"], second["gpu"]) == ("GPU-1", "GPU-2")
        assert first["device"] == "cuda:0"
        host, name, random = first["owner"].split(":")
        assert (host, name, len(bytes.fromhex(random))) == (socket.gethostname(), "gpu1", 4)
        assert first["session"] == first["pid"]
        assert first["parent"] == second["parent"] != supervisor.process.pid
        expected = ["sag-worker", "work", "--name", "gpu1", "--owner", first["owner"]]
        assert first["arguments"] == expected
        assert os.getsid(first["parent"]) != os.getsid(supervisor.process.pid)

        os.kill(first["pid"], signal.SIGKILL)
        wait_until(lambda: len(supervisor.records) == 3)
        third = supervisor.newest("gpu1")
        assert third["pid"] != first["pid"]
        assert third["owner"] != first["owner"]
        assert third["parent"] == first["parent"]
        assert third["gpu"] == "GPU-1"
        assert "worker gpu1 exited (killed by SIGKILL); restarting in 0.1 s" in supervisor.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_in_order(run: Callable[..., Any], number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C are one SIGTERM to each worker; the status is 0 when all have exited."""
    with run("orderly") as supervisor:
        supervisor.process.send_signal(number)
        assert supervisor.process.wait(END_S) == 0
        for name in ("gpu1", "gpu2"):
            assert f"worker {name} exited (status 0)" in supervisor.log
            owner = supervisor.newest(name)["owner"]
            assert f"returned 0 orphaned messages of {owner}" in supervisor.log
        assert len(supervisor.records) == 2
        assert not any(is_running(each["pid"]) for each in supervisor.records)
        wait_until(lambda: not is_running(supervisor.records[0]["parent"]))


def test_a_worker_that_does_not_stop_is_killed(run: Callable[..., Any]) -> None:
    """Each SIGTERM is forwarded; a worker that outlives drain and grace is killed; status 0."""
    with run("stubborn", grace_s=0.6) as supervisor:
        supervisor.process.terminate()
        wait_until(lambda: supervisor.log.count("received SIGTERM") == 1)
        supervisor.process.terminate()
        wait_until(lambda: supervisor.log.count("received SIGTERM") == 2)
        assert "killing it" not in supervisor.log
        assert supervisor.process.wait(END_S) == 0
        assert supervisor.log.count("did not stop in time; killing it") == 2
        assert supervisor.log.count("(killed by SIGKILL)") == 2


def test_a_failing_device_does_not_affect_the_other(run: Callable[..., Any]) -> None:
    """After status 70 a worker is restarted, with growing pauses; the other keeps running."""
    with run("failing", ready=3) as supervisor:
        wait_until(lambda: "restarting in 0.4 s" in supervisor.log)
        assert "worker gpu1 exited (status 70, its device or its model fails)" in supervisor.log
        failed = [each for each in supervisor.records if each["name"] == "gpu1"]
        assert len({each["owner"] for each in failed}) == len(failed) > 1
        returned = f"returned 0 orphaned messages of {failed[0]['owner']}"
        wait_until(lambda: returned in supervisor.log)
        assert [each["name"] for each in supervisor.records].count("gpu2") == 1
        assert is_running(supervisor.newest("gpu2")["pid"])


def test_a_fork_server_that_dies_while_importing_is_retried(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    """A start that fails is logged and repeated; when the cause is gone all workers run."""
    (tmp_path / "broken").touch()
    with run("orderly", ready=0) as supervisor:
        for name in ("gpu1", "gpu2"):
            wait_until(partial(is_logged, supervisor, f"worker {name} could not be started"))
        (tmp_path / "broken").unlink()
        wait_until(lambda: len(supervisor.records) == 2)
        assert supervisor.process.poll() is None


def test_a_worker_that_cannot_be_watched_is_killed(run: Callable[..., Any], tmp_path: Path) -> None:
    """On a kernel without pidfd starts fail, and leave no worker running unsupervised."""
    (tmp_path / "no-pidfd").touch()
    with run("orderly", ready=0) as supervisor:
        wait_until(lambda: supervisor.log.count("could not be started") > 2)
        supervisor.process.terminate()
        assert supervisor.process.wait(END_S) == 0
        pids = [int(file.stem) for file in tmp_path.glob("*.unwatched")]
        assert len(pids) > 2
        wait_until(lambda: not any(map(is_running, pids)))


def test_a_killed_supervisor_stops_its_server_and_workers(run: Callable[..., Any]) -> None:
    """After `kill -9` of the supervisor the fork server exits, and the workers drain."""
    with run("slow") as supervisor:
        pids = [each["pid"] for each in supervisor.records]
        server = supervisor.records[0]["parent"]
        supervisor.process.kill()
        wait_until(lambda: len(list(supervisor.folder.glob("*.draining"))) == 2)
        wait_until(lambda: not is_running(server))
        assert all(is_running(pid) for pid in pids)
        (supervisor.folder / "drained").touch()
        wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_a_killed_fork_server_is_replaced(run: Callable[..., Any]) -> None:
    """After `kill -9` of the fork server its workers drain; only then others take their places.

    A worker that still drains holds its messages and its GPU.
    """
    with run("slow") as supervisor:
        before = {each["name"]: each for each in supervisor.records}
        os.kill(before["gpu1"]["parent"], signal.SIGKILL)
        folder = supervisor.folder
        wait_until(lambda: len(list(folder.glob("*.draining"))) == 2)
        assert "exited" not in supervisor.log
        (folder / "drained").touch()
        wait_until(lambda: len(supervisor.records) == 4)
        (folder / "drained").unlink()
        assert supervisor.log.count("its fork server died first") == 2
        for name, old in before.items():
            new = supervisor.newest(name)
            assert new["parent"] != old["parent"]
            assert new["gpu"] == old["gpu"]
            returned = f"returned 0 orphaned messages of {old['owner']}"
            wait_until(partial(is_logged, supervisor, returned))
        (folder / "drained").touch()
        supervisor.process.terminate()
        assert supervisor.process.wait(END_S) == 0
