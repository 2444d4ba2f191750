"""A worker beside other Celery applications in the same environment."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from tests.service.conftest import END_S, SHORT, sag_worker
from worker import embedded
from worker.config.environment import CELERY_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service

CELERY = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "--loglevel=INFO"]


@pytest.fixture
def elsewhere() -> dict[str, str]:
    """Variables of other applications: Celery's own, and a Django project's."""
    variables = dict.fromkeys(CELERY_VARIABLES, f"redis://127.0.0.1:{embedded.free_port()}/0")
    return variables | {"DJANGO_SETTINGS_MODULE": "nowhere.settings"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "started_by",
    [None, CELERY],
    ids=["run", "celery"],
)
def test_a_worker_ignores_celerys_own_variables(
    start_service: Callable[..., AbstractContextManager[Service]],
    elsewhere: dict[str, str],
    tmp_path: Path,
    started_by: list[str] | None,
) -> None:
    """Tasks and results are at `SAG_BROKER_URL`; the log warns of each variable.

    Nor does the worker become part of a Django project that the environment names.
    """
    with (
        embedded.redis_server(tmp_path) as url,
        start_service(url, started_by, elsewhere) as service,
    ):
        app = Celery("caller", broker=url, backend=url, set_as_current=False)
        answer = app.send_task("sag.generate", kwargs={"request": SHORT}, queue="generate.default")
        assert answer.get(timeout=END_S)["images"]
        for name in CELERY_VARIABLES:
            assert f"{name} is ignored; use" in service.log.read_text()


@pytest.mark.slow
def test_a_command_ignores_celerys_own_variables(
    service: Service, elsewhere: dict[str, str]
) -> None:
    """`queue` asks the broker at `SAG_BROKER_URL`, and warns of each variable."""
    done = sag_worker(service, "queue", others=elsewhere)
    assert done.returncode == 0, done.stderr
    for name in CELERY_VARIABLES:
        assert f"{name} is ignored; use" in done.stderr
