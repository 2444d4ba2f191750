"""The Django project: its web server, its own Celery worker, and a separate SAG worker.

The project's Celery and the SAG worker each use a database of one Redis.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest
from celery import Celery
from redis import Redis

from tests import fork_server
from tests.conftest import FEW_STEPS
from tests.examples.conftest import ANSWER_S, EXAMPLES, PNG, PROMPT, ask, run, wheres
from tests.service.conftest import END_S, wait_until
from worker import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.conftest import Service

    StartServer = Callable[..., AbstractContextManager[str]]

FOLDER = EXAMPLES / "django"
SERVE = [str(FOLDER / "manage.py"), "runserver", "--noreload", "{port}"]
WORK = ["-m", "celery", "-A", "shop", "--workdir", str(FOLDER), "worker"]
WORK += ["--pool", "solo", "--loglevel", "info"]
NAMESPACE = "gallery"
CURRENT = """
from threading import Thread
from celery import current_app
from shop.sag import client
client().submit({"prompt": "a large red circle on a white background"})
def show(): print(current_app.main, current_app.conf.task_default_queue)
show()
thread = Thread(target=show); thread.start(); thread.join()
"""


@dataclass(frozen=True)
class Shop:
    """The running project."""

    url: str
    sag: Service
    broker_url: str
    environment: dict[str, str]

    def posted(self, path: str, **order: object) -> dict[str, Any]:
        """The answer to a POST that was accepted."""
        answer = ask(f"{self.url}/{path}", "POST", order)
        assert answer.status == 202
        read: dict[str, Any] = answer.json
        return read

    def ended(self, path: str, field: str) -> dict[str, Any]:
        """The answer at `path` once its `field` is a final state."""
        read: dict[str, Any] = {}

        def over() -> bool:
            read.update(ask(f"{self.url}/{path}").json)
            return read[field] not in ("queued", "running", "PENDING", "STARTED", "RETRY")

        wait_until(over)
        return read


@pytest.fixture(scope="module")
def shop(
    start_service: Callable[..., AbstractContextManager[Service]],
    start_server: StartServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shop]:
    """All three processes, with a Redis of their own."""
    log = tmp_path_factory.mktemp("shop") / "celery.log"
    with (
        embedded.redis_server(log.parent) as sag_url,
        start_service(sag_url, namespace=NAMESPACE, models=FEW_STEPS) as sag,
    ):
        own_url = sag_url.removesuffix("0") + "1"
        environment = {
            "SAG_BROKER_URL": sag_url, "SAG_NAMESPACE": NAMESPACE,
            "CELERY_BROKER_URL": own_url, "CELERY_RESULT_BACKEND": own_url,
        }  # fmt: skip
        command = [sys.executable, *WORK]
        with (
            fork_server.running(command, log, lambda: " ready." in log.read_text(), environment),
            start_server(*SERVE, **environment) as url,
        ):
            yield Shop(url, sag, own_url, environment)


def keys_in(url: str) -> set[str]:
    """The keys of a database."""
    with Redis.from_url(url, decode_responses=True) as redis:
        return {str(name) for name in redis.scan_iter()}


def test_a_view_has_a_picture_made(shop: Shop) -> None:
    """POST gives the id at once; GET at that id ends with the URL of a PNG."""
    task_id = shop.posted("pictures", prompt=PROMPT)["id"]
    end = shop.ended(f"pictures/{task_id}", "status")
    assert (end["id"], end["status"]) == (task_id, "succeeded")
    with urlopen(end["result"]["images"][0]["url"], timeout=ANSWER_S) as picture:
        assert picture.read().startswith(PNG)


def test_a_job_of_the_projects_own_gives_the_key(shop: Shop) -> None:
    """The project's Celery task waits for the SAG worker; its result is the picture's key."""
    job = shop.posted("articles", prompt=PROMPT)["job"]
    end = shop.ended(f"articles/{job}", "state")
    result = shop.sag.client.handle(f"article-{job}").result(timeout=END_S)
    assert end == {"job": job, "state": "SUCCESS", "key": result.images[0].key}


def test_neither_writes_into_the_others_database(shop: Shop) -> None:
    """Queues, records and results of each are in its own database only."""
    task_id = shop.posted("pictures", prompt=PROMPT)["id"]
    job = shop.posted("articles", prompt=PROMPT)["job"]
    shop.ended(f"pictures/{task_id}", "status")
    shop.ended(f"articles/{job}", "state")
    sag, own = keys_in(shop.sag.broker_url), keys_in(shop.broker_url)
    ours = [f"celery-task-meta-{each}" for each in (task_id, f"article-{job}")]
    assert {*ours, "_kombu.binding.generate.default"} <= sag
    assert {f"{NAMESPACE}:{{{task_id}}}:task", f"{NAMESPACE}:{{article-{job}}}:task"} <= sag
    assert not {name for name in sag if "shop" in name or name == f"celery-task-meta-{job}"}
    assert {f"celery-task-meta-{job}", "_kombu.binding.shop"} <= own
    assert not {name for name in own if any(each in name for each in ("generate", NAMESPACE))}
    assert not set(ours) & own
    with Redis.from_url(shop.broker_url) as redis:
        result: Any = redis.get(f"celery-task-meta-{job}")
        assert json.loads(result)["children"] == []


def test_a_job_that_runs_twice_makes_one_picture(shop: Shop) -> None:
    """A Celery task that is delivered again, as after a lost worker, submits the same SAG task."""
    job = str(uuid.uuid4())
    with Celery(
        "again", set_as_current=False, broker=shop.broker_url, backend=shop.broker_url
    ) as app:
        for _ in range(2):
            app.send_task("shop.tasks.illustrate", [{"prompt": PROMPT}], task_id=job, queue="shop")
        app.AsyncResult(job).get(timeout=END_S)
    wait_until(lambda: not {"shop", "unacked"} & keys_in(shop.broker_url))
    kinds = [event.type for event in shop.sag.client.handle(f"article-{job}").events(timeout=END_S)]
    assert [kinds.count(each) for each in ("queued", "started", "succeeded")] == [1, 1, 1]


def test_the_projects_application_stays_the_current_one(shop: Shop) -> None:
    """The client's own Celery application never becomes the current one, in any thread."""
    environment = {**os.environ, **shop.environment}
    done = run(str(FOLDER / "manage.py"), "shell", "-v", "0", "-c", CURRENT, env=environment)
    assert done.stdout.splitlines() == ["shop shop", "shop shop"], done.stderr


def test_an_invalid_request_names_its_fields(shop: Shop) -> None:
    """The view answers 422; a Celery task whose request is refused fails and names the field."""
    refused = ask(f"{shop.url}/pictures", "POST", {"prompt": PROMPT, "height": 65, "nope": 1})
    assert (refused.status, wheres(refused)) == (422, {"height", "nope"})
    assert ask(f"{shop.url}/pictures", "POST", []).status == 422
    job = shop.posted("articles", prompt=PROMPT, height=65)["job"]
    end = shop.ended(f"articles/{job}", "state")
    assert (end["state"], "height" in end["error"]) == ("FAILURE", True)


def test_other_refusals(shop: Shop) -> None:
    """An unknown task is 404, a wrong method 405; a failed task gives its error."""
    assert ask(f"{shop.url}/pictures/unknown").status == 404
    assert ask(f"{shop.url}/pictures").status == ask(f"{shop.url}/articles").status == 405
    task_id = shop.posted("pictures", prompt=PROMPT, num_inference_steps=151)["id"]
    end = shop.ended(f"pictures/{task_id}", "status")
    assert (end["status"], end["error"]["code"]) == ("failed", "invalid_request")


def test_redis_away_is_503(start_server: StartServer) -> None:
    """The server starts without Redis, and both views answer 503."""
    away = f"redis://127.0.0.1:{embedded.free_port()}/0"
    with start_server(*SERVE, SAG_BROKER_URL=away) as url:
        assert ask(f"{url}/pictures", "POST", {"prompt": PROMPT}).status == 503
        assert ask(f"{url}/pictures/demo-18").status == 503
