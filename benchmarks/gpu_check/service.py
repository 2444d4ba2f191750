"""A Redis, an S3 server and `sag-worker run` for the parts that measure the daemon."""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api_contracts import GenerationClient, WaitTimeout
from benchmarks.gpu_check import s3
from worker import embedded

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping, Sequence

    from api_contracts import GenerationResult, TaskHandle
    from benchmarks.model import Model
    from benchmarks.tasks import Task

BUCKET = "gpu-check"
#: How often a wait looks whether the worker is still there, in seconds.
LOOK_S = 2.0
#: Time for the daemon to end after SIGTERM, in seconds.
STOP_S = 15.0
LOG_CHARS = 3000


@dataclass(frozen=True)
class Servers:
    """Both servers, and a folder for logs."""

    redis_url: str
    s3: embedded.S3Server
    #: Which S3 server it is, for the page.
    s3_name: str
    folder: Path


@dataclass(frozen=True)
class Daemon:
    """A `sag-worker run` that has been started."""

    process: subprocess.Popen[bytes]
    log: Path
    client: GenerationClient

    def submit(self, task: Task) -> TaskHandle:
        """Send a task."""
        return self.client.submit(task.request())

    def results(self, tasks: Sequence[Task]) -> list[GenerationResult]:
        """Submit tasks together, wait for all."""
        return [self.result(handle) for handle in [self.submit(task) for task in tasks]]

    def result(self, handle: TaskHandle) -> GenerationResult:
        """Wait for a task; raises with the end of the log when the daemon has ended."""
        while True:
            try:
                return handle.result(timeout=LOOK_S)
            except WaitTimeout:
                if self.process.poll() is not None:
                    tail = self.log.read_text(errors="replace")[-LOG_CHARS:]
                    message = f"the daemon ended:\n{tail}"
                    raise RuntimeError(message) from None


@contextmanager
def servers() -> Iterator[Servers]:
    """Both servers on free ports of 127.0.0.1, ended on leaving."""
    with ExitStack() as stack:
        folder = stack.enter_context(embedded.scratch())
        redis_url = stack.enter_context(embedded.redis_server(folder))
        if (Path(sys.executable).parent / "weed").exists() or shutil.which("weed"):
            store = stack.enter_context(embedded.s3_server(folder, BUCKET))
            yield Servers(redis_url, store, "SeaweedFS", folder)
        else:
            store = stack.enter_context(_small_s3(folder))
            yield Servers(redis_url, store, "the small S3 server of this check, in memory", folder)


@contextmanager
def _small_s3(folder: Path) -> Iterator[embedded.S3Server]:
    """The server of `s3.py` in a process of its own, with the bucket."""
    import boto3  # noqa: PLC0415  # the worker extra
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415  # the worker extra

    port = embedded.free_port()
    store = embedded.S3Server(f"http://{s3.LOOPBACK}:{port}", "gpu-check", "gpu-check")
    client = boto3.client(
        "s3",
        endpoint_url=store.endpoint_url,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
        region_name="us-east-1",
    )

    def ready() -> bool:
        try:
            client.create_bucket(Bucket=BUCKET)
        except BotoCoreError:
            return False
        return True

    command = [sys.executable, "-m", s3.__name__, str(port)]
    with embedded.running(command, folder / "s3.log", ready, stop_s=1.0):
        yield store


@contextmanager
def daemon(
    servers: Servers, model: Model, settings: Mapping[str, object], *, wait: bool = True
) -> Iterator[Daemon]:
    """`sag-worker run` over the servers, stopped on leaving; with `wait` once it is ready.

    `settings` are those of the worker, as `slots`; those that are None keep their defaults.
    """
    given: dict[str, Any] = {
        "broker_url": servers.redis_url,
        "s3_endpoint_url": servers.s3.endpoint_url,
        "s3_bucket": BUCKET,
        "models": json.dumps({"default": model.spec.model_dump(mode="json")}),
        "device": model.device,
        "offload": "none",
        "drain_timeout_s": 1,
    }
    given |= settings
    environment = {
        f"SAG_{name.upper()}": str(value) for name, value in given.items() if value is not None
    }
    log = servers.folder / "daemon.log"
    log.touch()
    command = [sys.executable, "-m", "worker", "run"]
    with (
        embedded.running(
            command,
            log,
            lambda: is_ready(log) or not wait,
            servers.s3.environment | environment,
            stop_s=STOP_S,
        ) as process,
        GenerationClient(servers.redis_url) as client,
    ):
        yield Daemon(process, log, client)


def is_ready(log: Path) -> bool:
    """Whether a worker has said that it takes tasks."""
    return "ready." in log.read_text(errors="replace")


def wait_until_ready(daemon: Daemon, limit_s: float) -> float:
    """Wait for `ready.`; gives the time of the monotonic clock at which it was seen."""
    deadline_s = time.perf_counter() + limit_s
    while not is_ready(daemon.log):
        if daemon.process.poll() is not None or time.perf_counter() > deadline_s:
            message = f"not ready:\n{daemon.log.read_text(errors='replace')[-LOG_CHARS:]}"
            raise RuntimeError(message)
        time.sleep(0.02)
    return time.perf_counter()
