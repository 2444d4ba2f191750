"""kombu and Celery are overridden in private parts: a change of any of these is noticed here."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from kombu.transport.redis import Channel as KombuChannel

from api_contracts.redis_io import transport
from tests.record.upstream import FUNCTIONS, Upstream, change_of
from worker.broker.celery_overrides import Backend, TaskPool, TolerantConsumer
from worker.broker.transport import Channel, QoS, Transport

ROOT = Path(__file__).resolve().parents[2]
OURS = (transport.Channel, QoS, Channel, Transport, TaskPool, Backend, TolerantConsumer)


@pytest.mark.parametrize("function", FUNCTIONS, ids=[each.name for each in FUNCTIONS])
def test_upstream_is_as_we_know_it(function: Upstream) -> None:
    """The source of every function that we replace or rely on is the one that we know."""
    change = change_of(function)
    assert change is None, change
    assert (ROOT / function.ours).is_file()


def test_a_change_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of a change names the function and the version, and says what to do."""
    (known,) = [each for each in FUNCTIONS if each.name.endswith(":Channel._brpop_start")]

    def _brpop_start(self: Any, timeout: float | None = None) -> None:
        """Do something else."""

    monkeypatch.setattr(KombuChannel, "_brpop_start", _brpop_start)
    change = str(change_of(known))
    assert change.startswith("kombu.transport.redis.Channel._brpop_start changed in kombu 5.")
    assert ": compare with worker/broker/transport.py, then update the digest to " in change
    monkeypatch.delattr(KombuChannel, "_brpop_start")
    assert str(change_of(known)).endswith("update the digest to gone")


@pytest.mark.parametrize("ours", OURS, ids=[each.__qualname__ for each in OURS])
def test_every_override_is_listed(ours: type) -> None:
    """A function that hides one of upstream's is in the list, so that its change is noticed."""
    listed = {each.name for each in FUNCTIONS}
    for name, value in vars(ours).items():
        if not inspect.isfunction(value):
            continue
        for base in ours.__mro__[1:]:
            if inspect.isfunction(vars(base).get(name)):
                assert f"{base.__module__}:{base.__qualname__}.{name}" in listed
                break
