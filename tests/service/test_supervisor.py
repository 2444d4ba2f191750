"""`run` when one of its processes dies: a worker process, the fork server, the supervisor."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from api_contracts import TaskStatus
from tests import fork_server
from tests.service.conftest import END_S, ENDLESS, SHORT, check_events, wait_for, wait_until
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from api_contracts import TaskHandle
    from tests.conftest import Service

    StartService = Callable[..., AbstractContextManager[Service]]

#: About 3 s on one core, for tasks that must end after a fault in their middle.
LONG = SHORT | {"num_inference_steps": 120}
TWO_STEPS = SHORT | {"num_inference_steps": 2, "seed": 3}
ONE, TWO = ([sys.executable, "-m", "worker", "run", "--workers", count] for count in "12")
#: Makes a fork server's import of torch look as if it had initialised CUDA.
TOUCHED = """
import sys
if any("forkserver" in each for each in sys.orig_argv):
    import torch
    torch.cuda._is_in_bad_fork = lambda: True
"""


@dataclass(frozen=True)
class ChildProcess:
    """A worker process, as the supervisor's log names it."""

    name: str
    pid: int
    owner: str

    @property
    def parent(self) -> int:
        """The fork server's process id."""
        return int(stat(self.pid)[1])


def children(service: Service) -> list[ChildProcess]:
    """All that were started, in order."""
    found = re.findall(r"worker (\S+) started: pid (\d+), owner (\S+)", service.log.read_text())
    return [ChildProcess(name, int(pid), owner) for name, pid, owner in found]


def stat(pid: int) -> list[str]:
    """State, parent and so on from `/proc`; empty without the process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return []


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    return stat(pid)[:1] not in ([], ["Z"])


def ready_count(service: Service) -> int:
    """How many workers have ever been ready."""
    return service.log.read_text().count("ready.")


@contextmanager
def two_busy(
    start_service: StartService, folder: Path, request: dict[str, object] = ENDLESS
) -> Iterator[tuple[Service, list[TaskHandle]]]:
    """Two workers with one slot each, and a task that each has started."""
    with (
        embedded.redis_server(folder) as url,
        start_service(url, TWO, slots="1", drain_timeout_s="0") as service,
    ):
        wait_until(lambda: ready_count(service) == 2)
        handles = [service.client.submit(request) for _ in range(2)]
        for handle in handles:
            wait_for(handle, "progress")
        yield service, handles


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_other_goes_on(
    start_service: StartService, tmp_path: Path
) -> None:
    """After `kill -9` a new process starts, the messages go back, the other's task is untouched."""
    with two_busy(start_service, tmp_path, LONG) as (service, handles):
        first, second = children(service)
        line = rf" {first.pid} INFO .* task (\S+) attempt 1: claimed"
        claimed = re.findall(line, service.log.read_text())
        (spared,) = [handle for handle in handles if handle.task_id not in claimed]
        os.kill(first.pid, signal.SIGKILL)
        wait_until(lambda: ready_count(service) == 3)
        log = service.log.read_text()
        assert f"worker {first.name} exited (killed by SIGKILL); restarting in 0.1 s" in log
        assert re.search(rf"returned \d+ orphaned messages of {re.escape(first.owner)}", log)
        third = children(service)[-1]
        assert third.name == first.name
        assert third.owner != first.owner
        assert spared.result(END_S).images
        events = list(spared.events(timeout=END_S))
        check_events(events)
        assert [event.worker for event in events if event.type == "started"] == [second.owner]
        assert [is_alive(child.pid) for child in (first, second, third)] == [False, True, True]
        assert service.client.submit(TWO_STEPS).result(END_S).images


@pytest.mark.slow
def test_a_killed_supervisor_leaves_no_process(start_service: StartService, tmp_path: Path) -> None:
    """After `kill -9` of `run` its processes end, and running tasks go back to the queue."""
    with two_busy(start_service, tmp_path) as (service, handles):
        pids = [child.pid for child in children(service)]
        pids.append(children(service)[0].parent)
        service.process.kill()
        for handle in handles:
            wait_for(handle, "requeued")
            assert handle.status() is TaskStatus.QUEUED
        wait_until(lambda: not any(map(is_alive, pids)))


@pytest.mark.slow
def test_a_killed_fork_server_is_replaced(start_service: StartService, tmp_path: Path) -> None:
    """A killed fork server's workers drain; another's workers take their places and their tasks."""
    with two_busy(start_service, tmp_path, LONG) as (service, handles):
        old = children(service)
        server = old[0].parent
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: len(children(service)) == 4)
        for child in old:
            assert not is_alive(child.pid)
        wait_until(lambda: all(f"of {each.owner}" in service.log.read_text() for each in old))
        assert children(service)[-1].parent != server
        for handle in handles:
            assert handle.result(END_S).images
            events = list(handle.events(timeout=END_S))
            check_events(events)
            assert [event.type for event in events].count("requeued") == 1
            assert events[-1].attempt == 1
        assert service.process.poll() is None


@pytest.mark.slow
def test_sigterm_ends_all_processes(start_service: StartService, tmp_path: Path) -> None:
    """SIGTERM to `run` ends every worker, gives its task back, and then ends `run` with 0."""
    with two_busy(start_service, tmp_path) as (service, handles):
        pids = [child.pid for child in children(service)]
        pids.append(children(service)[0].parent)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(END_S) == 0
        assert [handle.status() for handle in handles] == [TaskStatus.QUEUED] * 2
        assert service.log.read_text().count("exited (status 0)") == 2
        wait_until(lambda: not any(map(is_alive, pids)))


@pytest.mark.slow
def test_a_second_sigterm_gives_the_tasks_back_at_once(
    start_service: StartService, tmp_path: Path
) -> None:
    """A second SIGTERM ends the wait for the drain timeout."""
    with (
        embedded.redis_server(tmp_path) as url,
        start_service(url, ONE, drain_timeout_s="300") as service,
    ):
        handle = service.client.submit(ENDLESS)
        wait_for(handle, "progress")
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "requeued in 300 s" in service.log.read_text())
        since_s = time.monotonic()
        wait_until(lambda: time.monotonic() > since_s + 1.5)
        assert handle.status() is TaskStatus.RUNNING
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(END_S) == 0
        assert handle.status() is TaskStatus.QUEUED


@pytest.mark.slow
def test_settings_that_only_a_worker_process_reads_are_refused() -> None:
    """A worker process that ends with 2 for its settings ends `run` with 2, without a restart."""
    done = fork_server.run([*ONE[:-2], "--device", "gpu"], os.environ, timeout_s=END_S)
    assert done.returncode == 2
    assert "SAG_DEVICE" in done.stderr
    assert "restarting" not in done.stderr


@pytest.mark.slow
def test_a_forked_worker_draws_what_a_new_process_draws(
    start_service: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fork server has one thread, and a forked worker gives the bytes of one that was not.

    Also after a restart. The processes are executed, as `OMP_NUM_THREADS` is not the suite's.
    """
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # idle threads of the pools use no processor
    command = [sys.executable, "-m", "worker", "work"]
    with embedded.redis_server(tmp_path) as url:
        with start_service(url, command) as fresh:
            expected = fresh.client.submit(TWO_STEPS).result(END_S).images[0].sha256
        with start_service(url, ONE) as forked:
            (child,) = children(forked)
            server = child.parent
            status = Path(f"/proc/{server}/status").read_text()
            assert re.findall(r"^Threads:\s+(\d+)$", status, re.MULTILINE) == ["1"]
            assert forked.client.submit(TWO_STEPS).result(END_S).images[0].sha256 == expected
            os.kill(child.pid, signal.SIGKILL)
            wait_until(lambda: ready_count(forked) == 2)
            assert children(forked)[-1].parent == server
            assert forked.client.submit(TWO_STEPS).result(END_S).images[0].sha256 == expected


@pytest.mark.slow
def test_a_worker_from_a_fork_server_that_touched_cuda_is_executed(
    start_service: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA can't be forked: such a worker becomes a new interpreter with the same process id."""
    (tmp_path / "sitecustomize.py").write_text(TOUCHED)
    path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{path}" if path else str(tmp_path))
    with embedded.redis_server(tmp_path) as url, start_service(url, ONE) as service:
        (child,) = children(service)
        assert "CUDA was initialised before the fork" in service.log.read_text()
        command = Path(f"/proc/{child.pid}/cmdline").read_text().split("\0")
        assert command[command.index("--owner") + 1] == child.owner
        assert service.client.submit(TWO_STEPS).result(END_S).images
        service.process.kill()
        wait_until(lambda: not is_alive(child.pid))
