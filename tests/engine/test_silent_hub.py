"""A model whose files never come holds up nobody but its own jobs, and those for a limited time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.jobs import SPEC, job
from tests.record.owners import until
from worker.engine.engine import Engine, load_model
from worker.errors import ModelLoadError
from worker.job_control import Control, JobStopped, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.config.models import ModelSpec
    from worker.engine.model_loader import LoadedModel

SILENT = SPEC.model_copy(update={"path": "silent/model"})
QUICK = {"num_inference_steps": 1, "height": 32, "width": 32}


@pytest.fixture
def make() -> Iterator[Callable[..., Engine]]:
    """Engines of two models, one of whose hub never answers."""
    answers, engines = threading.Event(), list[Engine]()

    def wait(spec: ModelSpec) -> None:
        if spec is SILENT:
            assert answers.wait(120)

    def loader(spec: ModelSpec, *given: Any, **options: Any) -> LoadedModel:
        assert spec is SPEC
        return load_model(spec, *given, **options)

    def begin(**options: Any) -> Engine:
        models = {"default": SPEC, "silent": SILENT}
        options = {"loader": loader, "fetch": wait, **options}
        engines.append(Engine(models, "cpu", "none", max_batch_rows=8, **options))
        return engines[-1]

    yield begin
    answers.set()
    for each in engines:
        each.close()


@pytest.mark.parametrize("max_models", [1, 2])
def test_jobs_of_other_models_go_on(make: Callable[..., Engine], max_models: int) -> None:
    """Before, beside and after a job that waits; their steps are no long steps.

    A model that is being downloaded takes no other's room.
    """
    engine = make(max_models=max_models)
    assert engine.submit(job(**QUICK), Control()).result(60).images
    waiting = engine.submit(job(model="silent"), Control())
    until(lambda: engine.loading_s("silent") is not None)
    assert engine.loading_s("default") is None
    assert engine.downloads_s.keys() == {"silent"}
    for _ in range(3):
        assert engine.submit(job(**QUICK), Control()).result(60).images
    assert engine.step_s < 60
    assert not waiting.done()
    assert waiting.cancel()


@pytest.mark.parametrize("reason", [Stop.CANCELLED, Stop.EXPIRED, Stop.DRAINED])
def test_its_own_jobs_can_be_stopped(make: Callable[..., Engine], reason: Stop) -> None:
    """A cancel, a deadline and a drain end a job that waits for its model."""
    engine, control = make(), Control()
    waiting = engine.submit(job(model="silent"), control)
    until(lambda: engine.loading_s("silent") is not None)
    control.request(reason)
    with pytest.raises(JobStopped) as stopped:
        waiting.result(60)
    assert stopped.value.reason is reason


def test_the_wait_is_limited(make: Callable[..., Engine]) -> None:
    """All jobs of the model fail, another attempt may succeed, and a later job downloads again."""
    engine = make(load_timeout_s=0.2)
    for _ in range(2):
        waiting = [engine.submit(job(model="silent"), Control()) for _ in range(2)]
        for each in waiting:
            with pytest.raises(ModelLoadError, match="SAG_LOAD_TIMEOUT_S") as failed:
                each.result(60)
            assert failed.value.retryable
        assert engine.downloads_s == {}


def test_a_disk_that_hangs_is_a_step_that_hangs(make: Callable[..., Engine]) -> None:
    """Loading is no step, until its limit; then the watchdog ends the process."""
    loading, go_on = threading.Event(), threading.Event()

    def loader(*given: Any, **options: Any) -> LoadedModel:
        loading.set()
        assert go_on.wait(120)
        return load_model(*given, **options)

    engine = make(loader=loader, load_timeout_s=1.0)
    future = engine.submit(job(**QUICK), Control())
    assert loading.wait(60)
    until(lambda: engine.step_s == float("inf"))
    assert (engine.loading_s("default") or 0.0) > 1.0
    go_on.set()
    assert future.result(60).images
    until(lambda: engine.step_s == 0.0)
