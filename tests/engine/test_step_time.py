"""How long the current step has taken, for the watchdog."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.jobs import SPEC, job
from tests.record.owners import until
from worker.engine.engine import Engine, load_model
from worker.job_control import Control

if TYPE_CHECKING:
    from worker.engine.loaded_model import LoadedModel
    from worker.job_control import Step


def test_loading_is_no_step_and_a_step_that_hangs_is_one() -> None:
    """Loading a model is no step; a step's time grows until it ends; when idle it is zero."""
    building, built = threading.Event(), threading.Event()
    stuck, go_on = threading.Event(), threading.Event()

    def loader(*given: Any, **options: Any) -> LoadedModel:
        building.set()
        assert built.wait(60)
        return load_model(*given, **options)

    def hang(step: Step) -> None:
        if step.step == 2:
            stuck.set()
            assert go_on.wait(60)

    engine = Engine({"default": SPEC}, "cpu", "model", max_batch_rows=8, loader=loader)
    assert engine.step_s == 0.0
    future = engine.submit(job(), Control(on_step=hang))
    assert building.wait(60)
    until(lambda: (engine.loading_s("default") or 0.0) > 0.3)
    assert engine.step_s == 0.0
    assert engine.stall(0.0) is None
    built.set()
    assert stuck.wait(120)
    assert engine.step_s > 0.0
    until(lambda: engine.step_s > 0.3)
    assert engine.stall(0.2) == "a step lasts longer than 0.2 s"
    assert engine.stall(600.0) is None
    # Loading before the step is not part of its time.
    assert engine.step_s < 60
    go_on.set()
    assert future.result(timeout=120).images
    until(lambda: engine.step_s == 0.0)
    engine.close()


def test_the_side_thread_is_watched_too() -> None:
    """A call on the side thread may hang as a step may, and counts as one."""
    stuck, go_on = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        stuck.set()
        assert go_on.wait(60)

    engine = Engine({"default": SPEC}, "cpu", "model")
    thread = threading.Thread(target=engine._timed, args=(hang,))
    thread.start()
    assert stuck.wait(60)
    until(lambda: engine.step_s > 0.1)
    engine._timed(lambda: None)
    assert engine.step_s > 0.1
    go_on.set()
    thread.join()
    assert engine.step_s == 0.0


@pytest.mark.slow  # it loads a model; another text of `stall` is checked above
def test_a_disk_that_hangs_is_a_device_that_hangs() -> None:
    """Loading is no step, but for a limited time; then the watchdog has the limit's name."""
    loading, go_on = threading.Event(), threading.Event()

    def loader(*given: Any, **options: Any) -> LoadedModel:
        loading.set()
        assert go_on.wait(120)
        return load_model(*given, **options)

    engine = Engine({"default": SPEC}, "cpu", "none", loader=loader, load_timeout_s=0.5)
    future = engine.submit(job(), Control())
    assert loading.wait(60)
    until(lambda: engine.stall(600.0) == "loading model 'default' lasts longer than 0.5 s")
    assert (engine.loading_s("default") or 0.0) > 0.5
    go_on.set()
    assert future.result(120).images
    assert engine.stall(600.0) is None
    engine.close()
