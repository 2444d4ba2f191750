"""Redis Cluster is refused by name, before anything is written."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from redis import Redis

from api_contracts import AsyncGenerationClient, GenerationClient, ServiceUnavailable
from tests.hostile.guarded import wheel_redis
from tests.redis_process import Server
from worker import embedded
from worker.app import refuse_clusters
from worker.config.settings import Settings
from worker.doctor.servers import check_redis
from worker.exit_codes import INVALID

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOTS = 16_384


def started(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A node; its second port, 10,000 above the first, may be another program's."""
    for _ in range(9):
        folder, port = tmp_path_factory.mktemp("node"), embedded.free_port()
        command = [
            wheel_redis(), "--port", str(port), "--cluster-enabled", "yes", "--dir", str(folder),
            "--bind", embedded.LOOPBACK, "--save", "",
        ]  # fmt: skip
        server = Server(folder, command, port)
        with suppress(AssertionError):
            server.start()
            return server
    pytest.fail("no pair of free ports")


@pytest.fixture(scope="module", params=["one node has all slots", "no node has slots"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a node in cluster mode."""
    server = started(tmp_path_factory)
    if request.param.startswith("one"):
        with server.connect() as redis:
            redis.execute_command("CLUSTER ADDSLOTS", *range(SLOTS))
            info: Any = {}
            while info.get("cluster_state") != "ok":
                info = redis.execute_command("CLUSTER INFO")
    yield f"redis://{embedded.LOOPBACK}:{server.port}/0"
    server.send(signal.SIGKILL)


def is_empty(url: str) -> bool:
    """Whether the node has no key."""
    with Redis.from_url(url) as redis:
        return bool(redis.dbsize() == 0)


def test_both_clients_name_it(url: str, no_backoff: None) -> None:
    """Both clients refuse a Redis Cluster by name with `ServiceUnavailable` and write nothing."""
    with (
        GenerationClient(url) as client,
        pytest.raises(ServiceUnavailable, match="Redis Cluster, which is not supported"),
    ):
        client.submit({"prompt": "x"}, "t")

    async def submit() -> None:
        async with AsyncGenerationClient(url) as client:
            await client.submit({"prompt": "x"}, "t")

    with pytest.raises(ServiceUnavailable, match="Redis Cluster, which is not supported"):
        asyncio.run(submit())
    assert is_empty(url)


@pytest.mark.parametrize("name", ["broker_url", "events_url", "result_url"])
def test_a_worker_does_not_start(
    url: str, redis_url: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker does not start if one of its servers is a Redis Cluster, and names the variable."""
    urls = {"broker_url": SecretStr(redis_url), name: SecretStr(url)}
    settings = Settings(device="cpu").model_copy(update=urls)
    with pytest.raises(SystemExit) as ended:
        refuse_clusters(settings)
    assert ended.value.code == INVALID
    assert f"SAG_{name.upper()}: this is a Redis Cluster" in caplog.text
    assert is_empty(url)


def test_a_server_that_does_not_answer_is_waited_for() -> None:
    """A server that does not answer is not refused as a Redis Cluster: it may be away for now."""
    refuse_clusters(Settings(broker_url="redis://127.0.0.1:9/0", device="cpu"))


def test_doctor_names_it(url: str) -> None:
    """`doctor` reports a Redis Cluster as one finding, with what to use instead."""
    found = list(check_redis(Settings(broker_url=url)))
    (finding,) = [each for each in found if "Redis Cluster" in (each.fix or "") and not each.ok]
    assert finding.what.startswith("redis broker")


@pytest.mark.slow
@pytest.mark.parametrize("command", [["run"], ["work"]])
def test_commands_end_with_status_2(url: str, command: list[str]) -> None:
    """`run` and `work` end with status 2 on a Redis Cluster, and `run` does not try again."""
    done = subprocess.run(
        [sys.executable, "-m", "worker", *command],
        env={"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path), "SAG_DEVICE": "cpu",
             "SAG_BROKER_URL": url},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == INVALID, done.stderr
    assert "SAG_BROKER_URL: this is a Redis Cluster" in done.stderr
    assert "Traceback" not in done.stderr
