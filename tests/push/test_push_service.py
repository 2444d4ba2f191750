"""A real worker pushes every kind of end to another application and to a webhook."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from redis import Redis
from standardwebhooks.webhooks import Webhook

from api_contracts import GenerationFailed, PushKind, PushState
from api_contracts.events import EVENT, Event
from tests.push import shop
from tests.push.receiver import Receiver, receiver
from tests.service.conftest import END_S, wait_for, wait_until
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.conftest import Service

#: A worker process serves these. `test_pusher.py` and `test_targets.py` check the same laws without
#: one.
pytestmark = pytest.mark.slow

SECRET = "whsec_" + "c2Vj" * 8
REPLY_TO = {"queue": shop.QUEUE, "task": shop.TASK}
SMALL = {"prompt": "a red circle", "num_inference_steps": 2}
LONG = {
    "prompt": "a red circle", "num_inference_steps": 150, "num_images_per_prompt": 4,
    "scheduler": "heun",
}  # fmt: skip


@pytest.fixture(scope="module")
def hook() -> Iterator[Receiver]:
    """A webhook receiver on this machine."""
    with receiver() as made:
        yield made


@pytest.fixture(scope="module")
def shop_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the other application's broker, another Redis, with its Celery worker."""
    with embedded.redis_server(tmp_path_factory.mktemp("redis")) as url:
        log = tmp_path_factory.mktemp("shop") / "worker.log"
        command = [sys.executable, "-m", "celery", "-A", "tests.push.shop", "worker"]
        command += ["--pool=solo", f"--queues={shop.QUEUE}", "--loglevel=INFO"]
        root = str(Path(__file__).resolve().parents[2])
        environment = {"SHOP_BROKER_URL": url, "PYTHONPATH": root}
        with embedded.running(command, log, lambda: "ready." in log.read_text(), environment):
            yield url


@pytest.fixture(scope="module")
def worker(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory, hook: Receiver, shop_url: str,
) -> Iterator[Service]:  # fmt: skip
    """A worker with one slot that may push to both."""
    allowed = {
        "reply_to": json.dumps([REPLY_TO | {"broker_url": shop_url}]),
        "webhook_hosts": json.dumps([hook.origin]),
        "webhook_secrets": json.dumps([SECRET]),
        "webhook_private_addresses": "true",
    }
    with (
        embedded.redis_server(tmp_path_factory.mktemp("redis")) as url,
        start_service(url, slots="1", lease_s="2", **allowed) as running,
    ):
        yield running


def received(shop_url: str, task_id: str) -> Event:
    """The event of a task that the shop received."""
    found: list[Event] = []

    def has_come() -> bool:
        with Redis.from_url(shop_url) as redis:
            entries: Any = redis.lrange(shop.RECEIVED, 0, -1)
        events = map(EVENT.validate_json, entries)
        found[:] = [event for event in events if event.task_id == task_id]
        return bool(found)

    wait_until(has_come)
    (event,) = found
    return event


def posted(hook: Receiver, task_id: str) -> Event:
    """The event of a task that the webhook received, its signature verified."""
    found: list[Event] = []

    def has_come() -> bool:
        for message in hook.messages:
            Webhook(SECRET).verify(message.body, message.headers)
        events = [EVENT.validate_json(message.body) for message in hook.messages]
        found[:] = [event for event in events if event.task_id == task_id]
        return bool(found)

    wait_until(has_come)
    (event,) = found
    return event


def test_a_picture_is_pushed_both_ways(worker: Service, hook: Receiver, shop_url: str) -> None:
    """The shop's Celery task and the webhook get the last event of the stream."""
    wanted = SMALL | {"reply_to": REPLY_TO, "webhook": f"{hook.origin}/x?token=geheim"}
    task = worker.client.submit(wanted, "push-both")
    *_, last = task.events(timeout=END_S)
    assert last.type == "succeeded"
    assert received(shop_url, "push-both") == posted(hook, "push-both") == last
    wait_until(lambda: {push.state for push in task.pushes().values()} == {PushState.DELIVERED})
    assert set(task.pushes()) == set(PushKind)
    assert "geheim" not in worker.log.read_text()
    assert "geheim" not in last.model_dump_json()


def test_plain_celery_may_ask_for_pushes(worker: Service, shop_url: str) -> None:
    """Ends of plain Celery messages are pushed, those of refused ones with the error."""
    plain = Celery("plain", broker=worker.broker_url, set_as_current=False)
    for task_id, request in (
        ("push-raw", SMALL),
        ("push-refused", {"prompt": "x", "nope": 1}),
        ("push-long", {"prompt": "x" * 9000}),
    ):
        plain.send_task(
            "sag.generate", kwargs={"request": {**request, "reply_to": REPLY_TO}},
            task_id=task_id, queue="generate.default",
        )  # fmt: skip
    assert received(shop_url, "push-raw").type == "succeeded"
    assert received(shop_url, "push-long").type == "failed"
    refused = received(shop_url, "push-refused")
    assert refused.type == "failed"
    assert refused.error.details["faults"][0]["where"] == "nope"


def test_the_end_of_a_waiting_task_is_pushed_soon(worker: Service, hook: Receiver) -> None:
    """The end of a waiting task (cancelled, expired) is pushed before its message is taken."""
    long = worker.client.submit(LONG)
    wait_for(long, "progress")
    wanted = SMALL | {"webhook": hook.origin}
    worker.client.submit(wanted, "push-cancelled").cancel()
    worker.client.submit(wanted | {"deadline_s": 0.5}, "push-expired")
    try:
        assert posted(hook, "push-cancelled").type == "cancelled"
        assert posted(hook, "push-expired").type == "expired"
        assert not long.status().is_terminal
    finally:
        long.cancel()


def test_targets_that_are_not_allowed_are_refused(worker: Service, hook: Receiver) -> None:
    """A task with a target that is not allowed fails, with the field."""
    for wanted in ({"webhook": "http://127.0.0.1:1/"}, {"reply_to": REPLY_TO | {"task": "x"}}):
        with pytest.raises(GenerationFailed) as caught:
            worker.client.submit(SMALL | wanted).result(END_S)
        (where,) = wanted
        assert caught.value.error.code == "invalid_request"
        assert caught.value.error.details["faults"][0]["where"] == where


def test_the_next_worker_delivers_what_one_could_not(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory, hook: Receiver,
) -> None:  # fmt: skip
    """A push that one worker could not deliver is delivered by the next."""
    allowed = {
        "webhook_hosts": json.dumps([hook.origin]),
        "webhook_secrets": json.dumps([SECRET]),
        "webhook_private_addresses": "true",
    }
    hook.answers = [503] * 1000
    with embedded.redis_server(tmp_path_factory.mktemp("redis")) as url:
        with start_service(url, namespace="pushes", **allowed) as first:
            task = first.client.submit(SMALL | {"webhook": hook.origin}, "push-later")
            wait_until(lambda: bool(task.pushes()) and task.pushes()[PushKind.WEBHOOK].tries > 0)
        hook.answers = []
        with start_service(url, namespace="pushes", **allowed) as second:
            task = second.client.handle("push-later")
            wait_until(lambda: task.pushes()[PushKind.WEBHOOK].state is PushState.DELIVERED)
