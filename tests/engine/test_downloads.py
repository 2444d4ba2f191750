"""Downloads: one thread for each model, tried again while a job waits."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.engine.jobs import SPEC
from tests.record.owners import until
from worker.engine.loading import downloads
from worker.engine.loading.downloads import Downloads
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from worker.config.models import ModelSpec

WAIT_S = 60


class Hub:
    """A hub that answers when a test says so, with the errors that it says."""

    def __init__(self) -> None:
        self.answers, self.errors, self.asked = threading.Event(), list[Exception](), 0
        self.downloads = Downloads({"a": SPEC, "b": SPEC}, self._download)

    def _download(self, _: ModelSpec) -> None:
        self.asked += 1
        assert self.answers.wait(WAIT_S)
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(downloads, "MIN_PAUSE_S", 0.01)
    monkeypatch.setattr(downloads, "MAX_PAUSE_S", 0.02)
    return Hub()


def test_one_download_serves_all_who_wait(hub: Hub) -> None:
    """One download serves all who wait for a model, and its time is known until it ends."""
    first, second, other = (hub.downloads.wanted(alias) for alias in ("a", "a", "b"))
    assert first is second
    assert other is not first
    assert hub.downloads.times_s.keys() == {"a", "b"}
    until(lambda: hub.asked == 2)
    hub.answers.set()
    first.result(WAIT_S)
    other.result(WAIT_S)
    assert hub.downloads.times_s == {}
    assert hub.downloads.wanted("a") is not first


def test_an_error_that_may_pass_is_tried_again(hub: Hub) -> None:
    """A download whose error may pass is tried again, and no waiting job fails."""
    hub.errors = [ModelLoadError("no answer"), ModelLoadError("no answer")]
    hub.answers.set()
    hub.downloads.wanted("a").result(WAIT_S)
    assert hub.asked == 3


def test_nothing_is_tried_again_for_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the last job has stopped waiting, the thread ends, and a later job starts anew."""
    monkeypatch.setattr(downloads, "FORGET_S", 0.0)
    hub.errors = [ModelLoadError("no answer")]
    hub.answers.set()
    with pytest.raises(ModelLoadError, match="no answer"):
        hub.downloads.wanted("a").result(WAIT_S)
    assert hub.asked == 1
    hub.downloads.wanted("a").result(WAIT_S)


@pytest.mark.parametrize(
    "error", [ModelLoadError("no such model", retryable=False), ValueError("a bug")]
)
def test_a_lasting_error_is_raised_at_once(hub: Hub, error: Exception) -> None:
    """A lasting error is raised at once to every job that waits."""
    hub.errors = [error]
    waiting = [hub.downloads.wanted("a") for _ in range(2)]
    hub.answers.set()
    for each in waiting:
        with pytest.raises(type(error), match=str(error)):
            each.result(WAIT_S)
    assert hub.asked == 1
    assert hub.downloads.times_s == {}
