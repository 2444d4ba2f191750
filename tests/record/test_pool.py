"""Celery's thread pool: a slot is free again whatever happens to its message."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery.worker import state
from redis.exceptions import ReadOnlyError

from worker.broker import celery_overrides

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("fault", [None, ReadOnlyError("a replica")])
def test_a_message_that_can_not_be_requeued_keeps_no_slot(
    monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    """A message that can't be requeued frees its slot, so that its lease is renewed no more."""
    monkeypatch.setattr(celery_overrides, "REQUEUE_PAUSE_S", 0.0)
    ready: list[Any] = []
    monkeypatch.setattr(state, "task_ready", ready.append)

    def reject(*, requeue: bool) -> None:
        assert requeue
        if fault is not None:
            raise fault

    request: Any = SimpleNamespace(id="t", reject=reject)
    future: Future[Any] = Future()
    future.set_exception(MemoryError())
    settle: Callable[..., None] = celery_overrides._requeue_failed
    if fault is None:
        settle(request, future)
    else:
        with pytest.raises(type(fault)):
            settle(request, future)
    assert ready == [request]
