"""The exporter's HTTP server and command: metrics, status, health, and Redis that is away."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.exporter.conftest import entry, pool_settings
from tests.record.box import post
from tests.record.owners import now_s
from worker import embedded
from worker.exporter.server import listen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from api_contracts.names import Keys
    from worker.config.settings import Settings

FIELDS = {
    "backlog", "waiting", "waiting_by", "held", "running", "oldest_wait_s", "workers",
    "workers_well", "slots_per_worker", "slots", "slots_free", "refusals", "dead_letters",
    "pushes_due", "pushes_pending", "open_tasks", "oldest_open_s",
}  # fmt: skip


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """The URL of a server on a free port."""
    port = embedded.free_port()
    with listen(settings, embedded.LOOPBACK, port) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{embedded.LOOPBACK}:{port}"
        finally:
            server.shutdown()
            thread.join()


def fetch(url: str, method: str = "GET") -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method)) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Values by name and the values of the labels."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_and_status_say_the_same(
    settings: Settings, redis: Redis, keys: Keys, namespace: str
) -> None:
    """Each number of the status is a gauge, and waiting messages are by model and priority."""
    post(redis, namespace, *"abc")
    redis.zadd(keys.workers, {"a:w:1": now_s(redis), "b:w:1": now_s(redis)})
    redis.hset(keys.pool, "a:w:1", entry(slots=2))
    redis.hset(keys.pool, "b:w:1", entry(slots=2, refusal="leaving"))
    with serving(settings) as url:
        code, text = fetch(f"{url}/status")
        found = samples(fetch(f"{url}/metrics")[1])
    status: dict[str, Any] = json.loads(text)
    assert (code, set(status)) == (200, FIELDS)
    assert (status["backlog"], status["waiting"], status["workers_well"]) == (1.5, 3, 1)
    assert status["waiting_by"] == {namespace: {"5": 3}}
    assert status["refusals"] == {"b:w:1": "leaving"}
    assert found["sag_pool_tasks_waiting", (namespace, "5")] == 3
    assert found["sag_pool_tasks_waiting", (namespace, "0")] == 0
    assert found["sag_pool_backlog_workers", ()] == 1.5
    assert found["sag_exporter_redis_up", ()] == 1
    assert ("sag_pool_oldest_wait_seconds", ()) not in found  # these messages have no record
    for name in ("held", "running"):
        assert found[f"sag_pool_tasks_{name}", ()] == status[name]
    for name in ("workers", "workers_well", "slots_free", "dead_letters", "pushes_due"):
        assert found[f"sag_pool_{name}", ()] == status[name]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here (prometheus)")
def test_the_metrics_follow_the_rules_of_prometheus(settings: Settings) -> None:
    """The metrics' names, units and help texts pass `promtool check metrics`."""
    with serving(settings) as url:
        text = fetch(f"{url}/metrics")[1]
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_without_redis_there_are_no_numbers(namespace: str) -> None:
    """`/status` is 503 with a reason, `/metrics` has no number of the pool, `/healthz` is well."""
    secret = "not-to-be-shown"
    port = embedded.free_port()
    settings = pool_settings(f"redis://user:{secret}@127.0.0.1:{port}/0", namespace)
    with serving(settings) as url:
        code, text = fetch(f"{url}/status")
        metrics_code, metrics_text = fetch(f"{url}/metrics")
        assert fetch(f"{url}/healthz") == (200, "ok\n")
    assert code == 503
    assert set(json.loads(text)) == {"error"}
    assert f":{port}" in json.loads(text)["error"]
    assert metrics_code == 200
    found = samples(metrics_text)
    assert found["sag_exporter_redis_up", ()] == 0
    assert not [name for name, _ in found if name.startswith("sag_pool_")]
    assert secret not in text + metrics_text


def test_the_status_is_json(settings: Settings, redis: Redis, keys: Keys) -> None:
    """The status is JSON without `Infinity` or `NaN`, whatever a producer writes."""
    redis.zadd(keys.open, {"odd": float("-inf")})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    with serving(settings) as url:
        code, text = fetch(f"{url}/status")
    assert (code, json.loads(text, parse_constant=refuse)["open_tasks"]) == (200, 1)


@pytest.mark.parametrize(
    ("path", "method", "code"),
    [("/", "GET", 404), ("/metric", "GET", 404), ("/status", "POST", 405)],
)
def test_other_requests_are_refused(settings: Settings, path: str, method: str, code: int) -> None:
    """Any other path is answered by 404, and any other method by 405."""
    with serving(settings) as url:
        assert fetch(url + path, method)[0] == code


def test_both_families_of_addresses_are_served(settings: Settings) -> None:
    """`--host ::1` listens on IPv6."""
    port = embedded.free_port()
    with listen(settings, "::1", port) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert fetch(f"http://[::1]:{port}/healthz")[0] == 200
        thread.join()


EXPORTER = """
import json, sys, threading, urllib.request
sys.argv = ["sag-worker", "exporter", "--host", "127.0.0.1", "--port", sys.argv[1]]
from worker.exporter import server
listen = server.listen
def then_ask(*args):
    made = listen(*args)
    def ask():
        url = f"http://127.0.0.1:{args[2]}/"
        for path in ("metrics", "status", "healthz"):
            urllib.request.urlopen(url + path).read()
        import os, signal
        print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=ask).start()
    return made
server.listen = then_ask
from worker.cli.main import main
main()
"""


def test_the_command_loads_nothing_heavy(redis_url: str) -> None:
    """The exporter loads neither torch nor boto3 nor Celery, and ends with 0 by SIGTERM."""
    done = subprocess.run(
        [sys.executable, "-c", EXPORTER, str(embedded.free_port())],
        env={"PYTHONPATH": ":".join(sys.path), "SAG_BROKER_URL": redis_url},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    extra = {"torch", "diffusers", "transformers", "boto3", "botocore", "numpy", "PIL", "pynvml"}
    assert sorted(loaded & (extra | {"celery"})) == []


def test_a_taken_port_is_named(redis_url: str) -> None:
    """A taken port ends the exporter with status 2 and a message that has the port."""
    port = str(embedded.free_port())
    command = [sys.executable, "-m", "worker", "exporter", "--host", "127.0.0.1", "--port", port]
    environment = {"PYTHONPATH": ":".join(sys.path), "SAG_BROKER_URL": redis_url}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(port)))
        taken.listen()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert port in done.stderr
