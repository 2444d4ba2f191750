"""The client beside other Celery applications in its process: neither affects the other."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

from celery import Celery
from redis import Redis

from api_contracts import GenerationClient
from tests.contracts.test_submit import messages
from worker.embedded import free_port

if TYPE_CHECKING:
    import pytest

BESIDE_DJANGO = """
import threading
from api_contracts import GenerationClient
client = GenerationClient("redis://127.0.0.1:1/0")
from celery import Celery, current_app
mine = Celery("mine")
thread = threading.Thread(target=lambda: print(current_app.main))
thread.start()
thread.join()
print(current_app.main)
"""


def test_celerys_own_variables_are_those_of_others(
    redis_url: str,
    redis: Redis,
    namespace: str,
    request_data: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Messages go to the client's own URL; Celery's environment variables are ignored."""
    other = redis_url.removesuffix("0") + "1"
    monkeypatch.setenv("CELERY_BROKER_URL", other)
    monkeypatch.setenv("CELERY_BROKER_WRITE_URL", other)
    monkeypatch.setenv("CELERY_RESULT_BACKEND", f"redis://127.0.0.1:{free_port()}/0")
    with GenerationClient(redis_url, namespace) as client, Redis.from_url(other) as elsewhere:
        task_id = client.submit(request_data).task_id
        (message,) = messages(redis, request_data["model"])
        assert message["headers"]["id"] == task_id
        assert elsewhere.keys() == []


def test_a_client_that_came_first_is_no_ones_application(monkeypatch: pytest.MonkeyPatch) -> None:
    """`current_app` is the project's own in every thread, in a Django project too."""
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "project.settings")
    command = [sys.executable, "-c", BESIDE_DJANGO]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mine", "mine"]


def test_a_task_that_submits_has_no_children(
    client: GenerationClient, request_data: dict[str, Any]
) -> None:
    """A task submitted from another application's task is not a child of that task."""
    app = Celery("other", set_as_current=False)

    @app.task(bind=True)
    def submitting(self: Any) -> list[object]:
        client.submit(request_data)
        return list(self.request.children)

    assert submitting.apply().get() == []
