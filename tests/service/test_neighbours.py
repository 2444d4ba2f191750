"""A worker beside other Celery applications in the same environment."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from tests.service.conftest import END_S, SHORT, sag_worker
from worker import embedded
from worker.config.environment import CELERY_VARIABLES, UNHEARD_VARIABLES

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


#: What Celery's command line and its loader read, and what Kubernetes sets for a Service.
FOREIGN = {
    "BROKER_URL": "redis://127.0.0.1:1/0", "RESULT_BACKEND": "redis://127.0.0.1:1/7",
    "APP": "shop", "LOADER": "shop.loader:Loader", "CONFIG_MODULE": "shop.celeryconfig",
    "CELERY_LOADER": "shop.loader:Loader", "CELERY_CONFIG_MODULE": "shop.celeryconfig",
    "SKIP_CHECKS": "maybe", "NO_COLOR": "yes please", "C_STRICT_APP": "1", "TZ": "Asia/Tokyo",
    "SAG_METRICS_PORT": "tcp://10.96.3.7:9100", "SAG_METRICS_SERVICE_PORT": "9100",
    "SAG_MODELS": "", "SAG_SLOTS": "",
}  # fmt: skip


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
    """A worker's tasks and results are at `SAG_BROKER_URL`; the log warns of Celery's variables.

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
def test_a_worker_serves_beside_foreign_variables(
    start_service: Callable[..., AbstractContextManager[Service]], tmp_path: Path
) -> None:
    """A worker under `run` serves beside foreign variables, and names those that it ignores."""
    with (
        embedded.redis_server(tmp_path) as url,
        start_service(url, others=FOREIGN) as service,
    ):
        app = Celery("caller", broker=url, backend=url, set_as_current=False)
        answer = app.send_task("sag.generate", kwargs={"request": SHORT}, queue="generate.default")
        assert answer.get(timeout=END_S)["images"]
        log = service.log.read_text()
        for name in UNHEARD_VARIABLES:
            assert f"{name} is ignored; use" in log
        assert "SAG_METRICS_PORT=tcp://10.96.3.7:9100 is ignored: Kubernetes" in log
        assert "SAG_MODELS is empty: ignored" in log


@pytest.mark.slow
def test_a_command_ignores_celerys_own_variables(
    service: Service, elsewhere: dict[str, str]
) -> None:
    """`queue` asks the broker at `SAG_BROKER_URL`, and warns of each variable."""
    done = sag_worker(service, "queue", others=elsewhere)
    assert done.returncode == 0, done.stderr
    for name in CELERY_VARIABLES:
        assert f"{name} is ignored; use" in done.stderr
