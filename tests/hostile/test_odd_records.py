"""Records that no worker wrote: their messages harm neither other tasks nor metrics and spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from redis import Redis

from tests.service.conftest import END_S, wait_until
from tests.traces.collector import Collector, collector
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.conftest import Service

#: A worker process serves these. test_celery_task.py, test_claim.py and
#: test_reconciler_hostile.py in tests/record and tests/traces/test_odd_claims.py check the same
#: laws without one.
pytestmark = pytest.mark.slow

REQUEST = {"prompt": "a red circle", "num_inference_steps": 2}
#: Records that the scripts can't read, or whose values no span can have.
ODD: dict[str, dict[str, str | bytes] | str] = {
    "another-type": "x",
    "no-attempt": {"status": "queued", "attempt": "x"},
    "no-fence": {"status": "queued", "attempt": "0", "fence": "x", "submitted_at": "1"},
    "no-outcome": {"status": "succeeded", "outcome": "{"},
    "another-outcome": {"status": "succeeded", "outcome": "[1]"},
    "no-result": {"status": "succeeded", "outcome": '{"images": 5}'},
    "no-state": {"status": "dreaming", "outcome": "{}"},
    "no-lease": {"status": "running", "lease_until": "x", "owner": "y"},
    "no-number": {"status": "queued", "seq": "x", "submitted_at": "1"},
    "no-owner": {"status": "running", "lease_until": "9e15"},
    "no-time": {"status": "queued", "attempt": "0", "submitted_at": "nan"},
    "a-list": {"status": "cancelled", "outcome": "[]"},
    "before-1970": {"status": "queued", "submitted_at": "-5"},
    "never": {"status": "queued", "submitted_at": "-inf"},
    "lost-never": {"status": "running", "submitted_at": "1", "started_at": "x", "owner": "y"},
    "lost-by-latin-1": {"status": "running", "submitted_at": "1", "owner": b"\xfc"},
    "no-step": {"status": "cancelled", "outcome": '{"step":1e999}'},
    "deep": {"status": "cancelled", "outcome": "[" * 100_000},
    "large": {"status": "cancelled", "outcome": '"' + "x" * 9 * 2**20 + '"'},
}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Collector]:
    """An OTLP receiver of the module's own."""
    with collector() as made:
        yield made


@pytest.fixture(scope="module")
def narrow(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory, receiver: Collector,
) -> Iterator[Service]:  # fmt: skip
    """A worker with one slot, which exports its spans once in two seconds."""
    others = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "2000"}
    with (
        embedded.redis_server(tmp_path_factory.mktemp("redis")) as url,
        start_service(url, others=others, namespace="odd-records", slots="1") as running,
    ):
        yield running


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_record_does_not_delay_others(
    narrow: Service, receiver: Collector, kind: str
) -> None:
    """A message with an unreadable record, taken first, does not keep other tasks waiting.

    The spans of the next task, which are exported with its own, arrive.
    """
    redis, key = narrow.client.redis, narrow.client.keys.task(kind)
    fields: Any = ODD[kind]
    if isinstance(fields, str):
        redis.set(key, fields)
    else:
        redis.hset(key, mapping=fields)
    stranger = Celery("stranger", broker=narrow.broker_url, set_as_current=False)
    with stranger.connection_for_write() as connection:
        stranger.send_task(
            "sag.generate", kwargs={"request": REQUEST}, task_id=kind, connection=connection,
            queue="generate.default", priority=0,
        )  # fmt: skip
    honest = narrow.client.submit({**REQUEST, "priority": 9})
    assert honest.result(END_S).images
    wait_until(lambda: narrow.client.queue_depths() == {"default": 0})
    wait_until(lambda: redis.hlen("sag.unacked") == 0)
    assert receiver.wait(honest.task_id, lambda names: "attempt" in names)


def test_deeply_nested_messages_end_no_worker(narrow: Service) -> None:
    """Messages nested too deep end no worker, at whatever depth."""
    with Redis.from_url(narrow.broker_url) as broker:
        for depth in range(700, 1000, 3):
            headers = '{"id": "t", "task": ' + "[" * depth + "]" * depth + "}"
            broker.lpush("generate.default", f'{{"headers": {headers}, "body": "e30="}}')
    honest = narrow.client.submit({**REQUEST, "priority": 9})
    assert honest.result(END_S).images
    assert "starts again" not in narrow.log.read_text()
