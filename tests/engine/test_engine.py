"""The engine: one thread, and one loading of each model."""

from __future__ import annotations

import shutil
import threading
import weakref
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch

from tests.engine.jobs import SPEC, assert_close, job, latents_of
from worker.config.models import ModelSpec
from worker.engine.engine import Engine, load_model
from worker.errors import ModelLoadError, UnknownModelError
from worker.job_control import Control, JobStopped, Stop

if TYPE_CHECKING:
    from pathlib import Path

    from worker.engine.loaded_model import LoadedModel


def test_many_first_tasks_build_once_on_one_thread() -> None:
    """However many first jobs arrive together, the model is loaded once, on the engine's thread."""
    builds: list[str] = []

    def loader(*given: Any, **options: Any) -> LoadedModel:
        builds.append(threading.current_thread().name)
        return load_model(*given, **options)

    engine = Engine({"default": SPEC}, "cpu", "model", max_batch_rows=8, loader=loader)
    assert not builds
    assert "engine" not in {thread.name for thread in threading.enumerate()}
    together = threading.Barrier(4)
    futures = []

    def submit() -> None:
        together.wait()
        futures.append(engine.submit(job(), Control()))

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = [future.result(timeout=120) for future in futures]
    engine.close()
    assert builds == ["engine"]
    assert all(result.images for result in results)
    for result in results:
        assert_close(latents_of(result), latents_of(results[0]))


def test_an_unknown_model_is_refused_without_a_thread() -> None:
    """A model that is not in the settings fails at once and loads nothing."""
    engine = Engine({"default": SPEC}, "cpu", "model")
    with pytest.raises(UnknownModelError, match="serves default"):
        engine.submit(job(model="other"), Control()).result()


def test_a_stop_before_the_turn_builds_nothing() -> None:
    """A job that is stopped while it waits loads no model."""

    def loader(*given: Any, **_options: Any) -> LoadedModel:
        raise AssertionError

    engine = Engine({"default": SPEC}, "cpu", "model", max_batch_rows=8, loader=loader)
    control = Control()
    control.request(Stop.CANCELLED)
    with pytest.raises(JobStopped):
        engine.submit(job(), control).result(timeout=10)
    engine.close()


def test_a_job_that_waits_can_be_taken_back() -> None:
    """Cancelling the future of a waiting job does not affect the others."""
    building, go_on = threading.Event(), threading.Event()

    def loader(*given: Any, **options: Any) -> LoadedModel:
        building.set()
        assert go_on.wait(60)
        return load_model(*given, **options)

    engine = Engine({"default": SPEC}, "cpu", "model", max_batch_rows=8, loader=loader)
    first, second, third = (engine.submit(job(num_inference_steps=1), Control()) for _ in "abc")
    assert building.wait(60)
    assert not first.cancel()
    assert second.cancel()
    go_on.set()
    assert first.result(timeout=120).images
    assert third.result(timeout=120).images
    engine.close()


def test_a_failed_job_keeps_no_tensor_on_the_device() -> None:
    """A failed job's error and its causes hold no tensors."""
    held: list[weakref.ref[torch.Tensor]] = []

    def loader(*given: Any, **_options: Any) -> LoadedModel:
        latents = torch.zeros(1)
        held.append(weakref.ref(latents))
        try:
            return load_model(given[0], "nowhere", given[2])
        except ModelLoadError as error:
            raise ModelLoadError("why") from error

    engine = Engine({"default": SPEC}, "cpu", "model", max_batch_rows=8, loader=loader)
    future = engine.submit(job(), Control())
    assert isinstance(future.exception(timeout=10), ModelLoadError)
    engine.close()
    assert held[0]() is None


def test_no_error_ends_the_thread() -> None:
    """A `BaseException`, as from a panic in a library, fails its own job alone."""
    tries: list[int] = []

    def loader(*given: Any, **options: Any) -> LoadedModel:
        tries.append(1)
        if len(tries) == 1:
            raise BaseException("panic")  # noqa: TRY002  # on purpose
        return load_model(*given, **options)

    engine = Engine({"default": SPEC}, "cpu", "model", max_batch_rows=8, loader=loader)
    assert "panic" in str(engine.submit(job(), Control()).exception(timeout=60))
    assert engine.submit(job(num_inference_steps=1), Control()).result(timeout=60).images
    engine.close()


@pytest.mark.parametrize("broken", ["tokenizer", "text_encoder", "scheduler"])
def test_a_model_with_a_broken_part_does_not_load(tmp_path: Path, broken: str) -> None:
    """A part that is missing, truncated or not supported is `model_load_failed`."""
    folder = tmp_path / "model"
    shutil.copytree(SPEC.path, folder)
    match broken:
        case "tokenizer":
            shutil.rmtree(folder / "tokenizer")
        case "text_encoder":
            weights = folder / "text_encoder" / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:1000])
        case "scheduler":
            diffusers.EDMEulerScheduler().save_pretrained(folder / "scheduler")
            index = folder / "model_index.json"
            index.write_text(index.read_text().replace("DDIMScheduler", "EDMEulerScheduler"))
    spec = ModelSpec(path=str(folder), safety_checker=False)
    engine = Engine({"default": spec}, "cpu", "model")
    with pytest.raises(ModelLoadError):
        engine.submit(job(), Control()).result(timeout=60)
    engine.close()


@pytest.mark.parametrize("kind", ["missing", "empty", "hub-like", "no-safetensors"])
def test_a_model_that_cannot_load_says_why(tmp_path: Path, kind: str) -> None:
    """A missing, empty or pickled model is `model_load_failed`; the next job tries again."""
    if kind == "no-safetensors":
        folder = tmp_path / "pickled"
        _copy_without_safetensors(folder)
        path = str(folder)
    else:
        path = {"missing": "/nowhere/model", "empty": str(tmp_path), "hub-like": "../etc"}[kind]
    engine = Engine({"default": ModelSpec(path=path, safety_checker=False)}, "cpu", "model")
    for _ in range(2):
        with pytest.raises(ModelLoadError) as failed:
            engine.submit(job(), Control()).result(timeout=60)
        assert path in failed.value.message
    engine.close()


def test_a_missing_safety_checker_is_an_error() -> None:
    """A model that should have a safety checker and has none does not load."""
    spec = SPEC.model_copy(update={"safety_checker": True})
    engine = Engine({"default": spec}, "cpu", "model")
    with pytest.raises(ModelLoadError, match="safety"):
        engine.submit(job(), Control()).result(timeout=60)
    engine.close()


def _copy_without_safetensors(folder: Path) -> None:
    from safetensors.torch import load_file

    shutil.copytree(SPEC.path, folder)
    for file in folder.rglob("*.safetensors"):
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
