"""The supervisor's processes and signals, over stubs that are forked as workers are."""

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
    """A supervisor and what its children have written down."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process, self._folder = process, folder

    @property
    def log(self) -> str:
        """All that the supervisor has said."""
        return (self._folder / "log").read_text()

    @property
    def told(self) -> list[dict[str, Any]]:
        """Every process that has begun its work, the newest last."""
        files = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        return [json.loads(file.read_text()) for file in files]

    def newest(self, name: str) -> dict[str, Any]:
        """Who took a place last."""
        return [each for each in self.told if each["name"] == name][-1]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """Start the program over a kind of stub; ready when `ready` have told who they are."""

    @contextmanager
    def start(kind: str, *, grace_s: float = 60.0, ready: int = 2) -> Iterator[Run]:
        folder, log = tmp_path, tmp_path / "log"
        command = [sys.executable, str(PROGRAM), kind, str(folder), str(grace_s)]

        def began() -> bool:
            return len(list(folder.glob("*.json"))) >= ready

        try:
            with embedded.running(command, log, began) as process:
                yield Run(process, folder)
        finally:
            for file in folder.glob("*.json"):
                with suppress(ProcessLookupError):
                    os.kill(json.loads(file.read_text())["pid"], signal.SIGKILL)

    return start


def lives(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def says(supervisor: Run, words: str) -> bool:
    """Whether its log has the words."""
    return words in supervisor.log


def test_a_child_knows_its_place(run: Callable[..., Any]) -> None:
    """Each has its GPU, an owner's name of its own and a session of its own, below the server."""
    with run("settled") as supervisor:
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_in_order(run: Callable[..., Any], number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C are one SIGTERM to each child; status 0 when all have ended."""
    with run("settled") as supervisor:
        supervisor.process.send_signal(number)
        assert supervisor.process.wait(END_S) == 0
        for name in ("gpu1", "gpu2"):
            assert f"worker {name} ended (status 0)" in supervisor.log
            assert f"gave back 0 messages of {supervisor.newest(name)['owner']}" in supervisor.log
        assert len(supervisor.told) == 2
        assert not any(lives(each["pid"]) for each in supervisor.told)
        wait_until(lambda: not lives(supervisor.told[0]["parent"]))


def test_who_does_not_end_is_killed(run: Callable[..., Any]) -> None:
    """A child that lives longer than drain and grace is killed; the supervisor ends with 0."""
    with run("stubborn", grace_s=0.5) as supervisor:
        supervisor.process.terminate()
        assert supervisor.process.wait(END_S) == 0
        assert supervisor.log.count("has not ended in time and is killed") == 2
        assert supervisor.log.count("(killed by SIGKILL)") == 2


def test_a_second_signal_is_forwarded_too(run: Callable[..., Any]) -> None:
    """Each SIGTERM reaches the children; the supervisor waits on."""
    with run("stubborn", grace_s=3.0) as supervisor:
        supervisor.process.terminate()
        wait_until(lambda: supervisor.log.count("got SIGTERM") == 1)
        supervisor.process.terminate()
        wait_until(lambda: supervisor.log.count("got SIGTERM") == 2)
        assert supervisor.process.wait(END_S) == 0


def test_a_failing_device_leaves_its_neighbour_alone(run: Callable[..., Any]) -> None:
    """Status 70: again after 1 s, then 2 s; what it held goes back; the other lives on."""
    with run("failing", ready=4) as supervisor:
        wait_until(lambda: "starts again in 2 s" in supervisor.log)
        assert "worker gpu1 ended (status 70, its device or its model fails)" in supervisor.log
        fallen = [each for each in supervisor.told if each["name"] == "gpu1"]
        assert len({each["owner"] for each in fallen}) == len(fallen) > 1
        wait_until(lambda: f"gave back 0 messages of {fallen[0]['owner']}" in supervisor.log)
        assert [each["name"] for each in supervisor.told].count("gpu2") == 1
        assert lives(supervisor.newest("gpu2")["pid"])


def test_a_killed_child_is_started_again_below_the_same_server(run: Callable[..., Any]) -> None:
    """`kill -9` of a child: another in its place within a second or so, from the same server."""
    with run("settled") as supervisor:
        before = supervisor.newest("gpu1")
        os.kill(before["pid"], signal.SIGKILL)
        wait_until(lambda: len(supervisor.told) == 3)
        after = supervisor.newest("gpu1")
        assert after["pid"] != before["pid"]
        assert after["parent"] == before["parent"]
        assert after["gpu"] == "GPU-1"
        assert "worker gpu1 ended (killed by SIGKILL); starts again in 0.1 s" in supervisor.log


def test_a_server_that_dies_over_its_imports_is_tried_again(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    """A start that fails is told and repeated; when what was broken is whole, all work."""
    (tmp_path / "broken").touch()
    with run("settled", ready=0) as supervisor:
        for name in ("gpu1", "gpu2"):
            wait_until(partial(says, supervisor, f"worker {name} could not be started"))
        (tmp_path / "broken").unlink()
        wait_until(lambda: len(supervisor.told) == 2)
        assert supervisor.process.poll() is None


def test_a_child_that_could_not_be_watched_is_killed(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    """Where the kernel has no pidfd nobody works unwatched: starts fail, and leave nothing."""
    (tmp_path / "blind").touch()
    with run("settled", ready=0) as supervisor:
        wait_until(lambda: supervisor.log.count("could not be started") > 2)
        supervisor.process.terminate()
        assert supervisor.process.wait(END_S) == 0
        left = [int(file.stem) for file in tmp_path.glob("*.unwatched")]
        assert len(left) > 2
        wait_until(lambda: not any(map(lives, left)))


def test_a_killed_supervisor_ends_its_server_and_children(run: Callable[..., Any]) -> None:
    """`kill -9` of the supervisor: the server ends, and the children are told to end in order."""
    with run("slow") as supervisor:
        pids = [each["pid"] for each in supervisor.told]
        server = supervisor.told[0]["parent"]
        supervisor.process.kill()
        folder = supervisor._folder
        wait_until(lambda: len(list(folder.glob("*.draining"))) == 2)
        wait_until(lambda: not lives(server))
        assert all(lives(pid) for pid in pids)
        (folder / "drained").touch()
        wait_until(lambda: not any(lives(pid) for pid in pids))


def test_a_killed_server_is_followed_by_another(run: Callable[..., Any]) -> None:
    """`kill -9` of the fork server: its children drain, and only then others take their places.

    A child that still drains holds its messages and its GPU.
    """
    with run("slow") as supervisor:
        before = {each["name"]: each for each in supervisor.told}
        os.kill(before["gpu1"]["parent"], signal.SIGKILL)
        folder = supervisor._folder
        wait_until(lambda: len(list(folder.glob("*.draining"))) == 2)
        assert "ended" not in supervisor.log
        (folder / "drained").touch()
        wait_until(lambda: len(supervisor.told) == 4)
        (folder / "drained").unlink()
        assert supervisor.log.count("the process that forked it is gone") == 2
        for name, old in before.items():
            new = supervisor.newest(name)
            assert new["parent"] != old["parent"]
            assert new["gpu"] == old["gpu"]
            assert f"gave back 0 messages of {old['owner']}" in supervisor.log
        (folder / "drained").touch()
        supervisor.process.terminate()
        assert supervisor.process.wait(END_S) == 0
