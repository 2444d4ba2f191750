"""Real servers and a real worker process on this machine, and the tasks sent through them."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from api_contracts import GenerationClient, GenerationResult, TaskHandle, WaitTimeout
from benchmarks import record, tasks
from benchmarks.thread_cpu import NAMES_FOLDER, ThreadTimes, worker_pid
from worker import embedded

if TYPE_CHECKING:
    import argparse
    import subprocess
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.model import Model
    from benchmarks.record import Cell
    from benchmarks.tasks import Task

BUCKET = "benchmark"
#: The checkout whose daemon is measured, unless another is asked for.
CHECKOUT = Path(__file__).resolve().parents[1]
#: How often a wait looks whether the worker is still there, in seconds.
LOOK_S = 5.0
#: Time for a worker to end after its signal, in seconds.
STOP_S = 60.0


@dataclass(frozen=True)
class Servers:
    """A Redis and an S3 server, and a folder for logs."""

    redis_url: str
    s3: embedded.S3Server
    folder: Path


@dataclass(frozen=True)
class Worker:
    """A worker process and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    def must_live(self) -> None:
        """Raise with the end of the log when the process has ended: nothing more will come."""
        if self.process.poll() is not None:
            message = f"the worker ended:\n{self.log.read_text(errors='replace')[-3000:]}"
            raise RuntimeError(message)


@dataclass(frozen=True)
class Daemon:
    """A running `sag-worker run` and a client of it."""

    worker: Worker
    client: GenerationClient

    def results(self, given: Sequence[Task]) -> list[GenerationResult]:
        """Submit the tasks together, wait for all."""
        handles = [self.client.submit(task.request()) for task in given]
        return [self._result(handle) for handle in handles]

    def thread_times(self) -> ThreadTimes:
        """Processor time of its worker process so far."""
        return ThreadTimes.of(worker_pid(self.worker.process.pid))

    def _result(self, handle: TaskHandle) -> GenerationResult:
        while True:
            try:
                return handle.result(timeout=LOOK_S)
            except WaitTimeout:
                self.worker.must_live()


@contextmanager
def servers() -> Iterator[Servers]:
    """Both servers on free ports of 127.0.0.1, ended on leaving."""
    with ExitStack() as stack:
        folder = stack.enter_context(embedded.scratch())
        redis_url = stack.enter_context(embedded.redis_server(folder))
        s3 = stack.enter_context(embedded.s3_server(folder, BUCKET))
        yield Servers(redis_url, s3, folder)


@contextmanager
def worker(
    servers: Servers, name: str, command: list[str], environment: Mapping[str, str]
) -> Iterator[Worker]:
    """A worker that has said `ready.`, ended on leaving."""
    log = servers.folder / f"{name}.log"

    def ready() -> bool:
        return "ready." in log.read_text(errors="replace")

    given = servers.s3.environment | dict(environment)
    with embedded.running(command, log, ready, given, stop_s=STOP_S) as process:
        yield Worker(process, log)


@contextmanager
def daemon(
    servers: Servers,
    model: Model,
    arguments: argparse.Namespace,
    checkout: Path = CHECKOUT,
    database: int = 0,
) -> Iterator[Daemon]:
    """`sag-worker run` over the servers, as the options of `add_options` say.

    Of the package in `checkout`, with a Redis database of its own; its threads have names.
    """
    redis_url = f"{servers.redis_url.removesuffix('/0')}/{database}"
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, (NAMES_FOLDER, checkout.resolve()))),
        "SAG_BROKER_URL": redis_url,
        "SAG_S3_ENDPOINT_URL": servers.s3.endpoint_url,
        "SAG_S3_BUCKET": BUCKET,
        "SAG_MODELS": json.dumps(
            {"default": model.spec.model_dump(mode="json", exclude_defaults=True)}
        ),
        "SAG_DEVICE": model.device,
        "SAG_OFFLOAD": "none",
        "SAG_DRAIN_TIMEOUT_S": "1",
        "SAG_SLOTS": str(arguments.slots),
        **dict(pair.split("=", 1) for pair in arguments.set),
    }
    command = [sys.executable, "-P", "-m", "worker", "run"]  # -P: not the package of this folder
    with (
        worker(servers, f"daemon-{database}", command, environment) as process,
        GenerationClient(redis_url) as client,
    ):
        yield Daemon(process, client)


def add_options(parser: argparse.ArgumentParser) -> None:
    """How the daemon is set."""
    parser.add_argument("--slots", type=int, default=16, help="the daemon's SAG_SLOTS")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SAG_NAME=VALUE",
        help="another setting of the daemon; may be given again",
    )


def took_s(began_s: float) -> float:
    """Seconds since `began_s` of the monotonic clock."""
    return time.perf_counter() - began_s


def described(arguments: argparse.Namespace) -> dict[str, Cell]:
    """What was asked for, for the result of a comparison with the daemon."""
    return record.options(
        **tasks.described(arguments),
        dtype=arguments.dtype,
        tasks=arguments.tasks,
        repeats=arguments.repeats,
        slots=arguments.slots,
        set=arguments.set,
    )
