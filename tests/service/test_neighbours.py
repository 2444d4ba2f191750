"""A worker beside other Celery applications of the same environment."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from tests.service.conftest import END_S
from tests.service.test_commands import command
from worker import embedded
from worker.config.environment import CELERY_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service

CELERY = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "--loglevel=INFO"]


@pytest.mark.parametrize("started_by", [None, CELERY], ids=["run", "celery"])
def test_celerys_own_variables_mean_nothing_to_it(
    start_service: Callable[..., AbstractContextManager[Service]],
    tmp_path: Path,
    started_by: list[str] | None,
) -> None:
    """Tasks, results and `queue` are at `SAG_BROKER_URL`; the log says what was set in vain.

    Nor does it become part of a Django project that the environment names.
    """
    elsewhere = dict.fromkeys(CELERY_VARIABLES, f"redis://127.0.0.1:{embedded.free_port()}/0")
    elsewhere["DJANGO_SETTINGS_MODULE"] = "nowhere.settings"
    with (
        embedded.redis_server(tmp_path) as url,
        start_service(url, started_by, elsewhere) as service,
    ):
        app = Celery("caller", broker=url, backend=url, set_as_current=False)
        request = {"prompt": "a red circle", "num_inference_steps": 2}
        answer = app.send_task(
            "sag.generate", kwargs={"request": request}, queue="generate.default"
        )
        assert answer.get(timeout=END_S)["images"]
        told = command(service, "queue")
        assert told.returncode == 0, told.stderr
        for name in CELERY_VARIABLES:
            assert f"{name} is ignored; use" in service.log.read_text()
            assert f"{name} is ignored; use" in told.stderr
