"""The slots of a worker share the connections of Celery's result backend."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

from redis import Redis

from worker import embedded
from worker.app import create_app
from worker.config.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from celery import Celery

TASKS = 64


def store_progress(app: Celery, task_id: str) -> None:
    app.backend.store_result(task_id, {}, "PROGRESS")


def test_results_of_all_slots_take_few_connections(tmp_path: Path) -> None:
    """Results that are written one after the other take one connection, from any thread.

    Celery's default is a backend for each thread, which keeps its connection.
    """
    with embedded.redis_server(tmp_path) as url, Redis.from_url(url) as redis:
        app = create_app(Settings(broker_url=url, device="cpu"))
        before = len(redis.client_list())
        for number in range(TASKS):
            store = partial(store_progress, app, f"t{number}")
            thread = threading.Thread(target=store)
            thread.start()
            thread.join()
        assert len(redis.client_list()) == before + 1
