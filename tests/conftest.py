"""The real parts that tests run against: Redis, S3, the shipped model, worker processes."""

from __future__ import annotations

import os
import sys
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationClient
from tests import wire
from worker import embedded
from worker.config.settings import Settings
from worker.process_guard import guard_children

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from redis import Redis

BUCKET = "tests"

guard_children()
embedded.redis_server = wire.watched(embedded.redis_server)  # type: ignore[assignment]  # the same arguments
wire.note_messages()


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_mine() -> None:
    """The suite sees no `SAG_` or AWS variable of whoever runs it."""
    for name in [name for name in os.environ if name.startswith(("SAG_", "AWS_"))]:
        del os.environ[name]


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of the session's own."""
    with embedded.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.S3Server]:
    """An S3 server of the session's own, its keys where boto3 looks for them."""
    with embedded.s3_server(tmp_path_factory.mktemp("s3"), BUCKET) as server:
        os.environ.update(server.environment)
        yield server


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A connection to the session's Redis."""
    from redis import Redis

    with Redis.from_url(redis_url, protocol=2) as connection:
        yield connection


@pytest.fixture
def namespace() -> str:
    """A namespace of the test's own, where it writes what it likes: `tests.wire` looks away."""
    return f"odd{uuid.uuid4().hex[:12]}"


@pytest.fixture
def settings(redis_url: str, s3: embedded.S3Server, namespace: str) -> Settings:
    """Settings over the session's servers, in the test's namespace and prefix."""
    return Settings(
        broker_url=redis_url,
        namespace=namespace,
        device="cpu",
        s3_endpoint_url=s3.endpoint_url,
        s3_bucket=BUCKET,
        s3_prefix=f"{namespace}/outputs",
        s3_input_prefix=f"{namespace}/inputs",
        s3_retry_s=5,
    )


@dataclass(frozen=True)
class Service:
    """A running worker and how to reach it."""

    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    client: GenerationClient
    broker_url: str
    prefix: str
    log: Path


StartService = "Callable[..., AbstractContextManager[Service]]"


@pytest.fixture(scope="session")
def start_service(
    tmp_path_factory: pytest.TempPathFactory, s3: embedded.S3Server
) -> Callable[..., AbstractContextManager[Service]]:
    """Start a worker process over a broker; settings by keyword, as `slots="1"`.

    `others` are variables that are no settings.
    """
    from contextlib import contextmanager

    @contextmanager
    def start(
        broker_url: str,
        command: list[str] | None = None,
        others: dict[str, str] | None = None,
        **extra: str,
    ) -> Iterator[Service]:
        folder = tmp_path_factory.mktemp("worker")
        name = extra.pop("namespace", f"w{uuid.uuid4().hex[:12]}")
        environment = {
            **s3.environment,
            "SAG_BROKER_URL": broker_url,
            "SAG_NAMESPACE": name,
            "SAG_DEVICE": "cpu",
            "SAG_S3_ENDPOINT_URL": s3.endpoint_url,
            "SAG_S3_BUCKET": BUCKET,
            "SAG_S3_PREFIX": f"{name}/outputs",
            "SAG_S3_INPUT_PREFIX": f"{name}/inputs",
            "SAG_DRAIN_TIMEOUT_S": "2",
            # As a quiet machine of this kind measures it: by less, tasks would run one by one.
            "SAG_MAX_BATCH_ROWS": "16",
            **{f"SAG_{key.upper()}": value for key, value in extra.items()},
            **(others or {}),
        }
        log = folder / "worker.log"
        command = command or [sys.executable, "-m", "worker", "run"]

        def ready() -> bool:
            return "ready." in log.read_text()

        with (
            embedded.running(command, log, ready, environment, stop_s=60) as process,
            GenerationClient(broker_url, name) as client,
        ):
            yield Service(process, environment, client, broker_url, f"{name}/outputs", log)

    return start


@pytest.fixture(scope="session")
def own_redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis for the shared worker, so that no other test's messages reach it."""
    with embedded.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def service(
    start_service: Callable[..., AbstractContextManager[Service]], own_redis_url: str
) -> Iterator[Service]:
    """One worker for all tests that need nothing special of it."""
    with start_service(own_redis_url) as running:
        yield running


@pytest.fixture(scope="session")
def standard(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A worker in the namespace `sag`, as the documents and examples expect it."""
    with (
        embedded.redis_server(tmp_path_factory.mktemp("redis")) as url,
        start_service(url, namespace="sag") as running,
    ):
        yield running
