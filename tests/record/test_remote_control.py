"""Celery's remote control: no command holds messages, or steers them past the claim."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import WorkerShutdown
from celery.worker import state as worker_state
from celery.worker.control import Panel
from kombu.utils.json import dumps

from worker.app import create_app
from worker.broker import remote_control
from worker.broker.remote_control import REFUSED, WELL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.config.settings import Settings

#: Commands of Celery that are served by its own code: they read.
HARMLESS = {
    "active", "active_queues", "clock", "conf", "disable_events", "election", "enable_events",
    "heartbeat", "memdump", "memsample", "objgraph", "ping", "query_task", "registered", "report",
    "reserved", "revoked", "scheduled", "stats",
    # Former names of some of them.
    "dump_active", "dump_conf", "dump_reserved", "dump_revoked", "dump_schedule", "dump_tasks",
}  # fmt: skip


class NoRecords:
    """Records that nothing asks."""


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    """The commands of a worker; Celery's own come back afterwards."""
    before = dict(Panel.data), dict(Panel.meta)
    remote_control.install(NoRecords(), dict, lambda: None)  # type: ignore[arg-type]  # not used
    yield
    Panel.data, Panel.meta = before


@pytest.mark.parametrize("name", REFUSED)
def test_a_command_that_would_hold_or_steer_is_refused(name: str) -> None:
    """A command that would hold or steer messages is refused with the reason."""
    answer = Panel.data[name](None, anything=1, destination="x")
    assert answer == {"error": f"{name} is not served: {REFUSED[name]}"}


def test_every_command_is_accounted_for() -> None:
    """A command that an upgrade of Celery adds must be looked at before it is served."""
    own = {"revoke", "terminate", "shutdown", "hello", WELL}
    assert set(Panel.data) == HARMLESS | own | set(REFUSED)


def test_shutdown_drains_and_stops_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """`shutdown` drains as SIGTERM does, each time it is sent; Celery ends with status 0."""
    monkeypatch.setattr(worker_state, "should_stop", None)
    drains: list[object] = []
    remote_control.install(NoRecords(), dict, lambda: drains.append(1))  # type: ignore[arg-type]  # not used
    for number in (1, 2):
        assert "ok" in Panel.data["shutdown"](None, msg="x")
        assert len(drains) == number
    with pytest.raises(WorkerShutdown) as ended:
        worker_state.maybe_shutdown()
    assert ended.value.code == 0


def test_what_another_worker_revoked_is_not_taken_over() -> None:
    """Ids that another worker revoked are not taken over, as Celery would drop their messages."""
    assert Panel.data["hello"](None, from_node="a@b", revoked={"task": 1.0}) == {}
    assert "task" not in worker_state.revoked


def test_a_rate_limit_has_no_effect(settings: Settings) -> None:
    """Rate limits are off in Celery, which would hold messages for them."""
    app = create_app(settings)
    assert app.conf.worker_disable_rate_limits is True


def test_the_brokers_options_can_be_shown(settings: Settings) -> None:
    """The broker's options can be shown as JSON, as `inspect stats` and Flower ask for them."""
    options: dict[str, Any] = create_app(settings).connection_for_read().info()
    shown = json.loads(dumps(options))["transport_options"]
    assert shown["may_take"] is True
    assert shown["owner"]
