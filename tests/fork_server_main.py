"""The process that forks the project's commands for tests: it has imported torch and Celery."""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from tests import forked_command

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
            forked_command.become(json.loads(data), files)
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
