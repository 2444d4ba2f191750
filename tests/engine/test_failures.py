"""Whatever part of a round fails, every job ends, and the engine serves the next job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import diffusers
import pytest
import torch

from tests.engine.attempts import new_batch, small
from tests.engine.cases import rotated, slow
from tests.engine.jobs import SPEC, Rounds, assert_close, job, latents_of
from worker.engine.engine import Engine, load_model
from worker.engine.model_cache import ModelCache
from worker.engine.runner import Runner
from worker.errors import DeviceOutOfMemoryError
from worker.job_control import Control

if TYPE_CHECKING:
    from worker.engine.loaded_model import LoadedModel


class Failing:
    """Stands in for a method, and raises so many times before it does its work."""

    def __init__(self, usual: Any, error: BaseException, times: int) -> None:
        self._usual, self._error, self.left = usual, error, times

    def __get__(self, owner: Any, _kind: Any) -> Any:
        """The method, bound to its owner."""
        return lambda *args, **options: self(owner, *args, **options)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Fail, or do the work."""
        if self.left:
            self.left -= 1
            raise self._error
        return self._usual(*args, **options)


PARTS = [
    (Runner, "encode"), (Runner, "evaluate"), (Runner, "decode"), (Runner, "finish"),
    (Runner, "preview"), (Runner, "offload_idle"), (Runner, "check"), (ModelCache, "free_memory"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("part", "failure"),
    rotated(
        PARTS, [(n, kind) for n in (1, 9) for kind in (ValueError, torch.OutOfMemoryError)], slow
    ),
)
def test_every_job_ends(
    rounds: Rounds,
    monkeypatch: pytest.MonkeyPatch,
    part: tuple[Any, str],
    failure: tuple[int, type[Exception]],
) -> None:
    """Every job ends when a part of the engine fails, once or nine times; a later job is served."""
    (kind, name), times, error = part, failure[0], failure[1]("broken")
    loaded = rounds.runner.model
    engine = Engine(
        {"default": SPEC}, "cpu", "none", max_batch_rows=8, loader=lambda *_, **__: loaded
    )
    wanted = small(num_inference_steps=2, output_type="png", preview_every=1)
    assert engine.submit(wanted, Control()).result(timeout=60).images
    if kind is ModelCache:
        monkeypatch.setattr(Runner, "encode", Failing(Runner.encode, error, times))
    failing = Failing(getattr(kind, name), error, times)
    monkeypatch.setattr(kind, name, failing)
    futures = [engine.submit(wanted, Control()) for _ in range(3)]
    for future in futures:
        future.exception(timeout=60)
    failing.left = 0
    monkeypatch.undo()
    assert engine.submit(wanted, Control()).result(timeout=60).images
    engine.close()


def test_nothing_holds_a_picture_but_its_caller(rounds: Rounds) -> None:
    """The engine keeps no reference to a finished picture, also when no other job follows."""
    import weakref

    later: list[tuple[Any, ...]] = []
    own = new_batch(rounds, lambda *call: later.append(call))
    future = own.submit(job(num_inference_steps=2, output_type="png"))
    own.run()
    while later:
        call, *arguments = later.pop(0)
        call(*arguments)
    picture = weakref.ref(future.result(timeout=0).images[0])
    del future, call, arguments
    assert picture() is None


def test_an_engine_that_is_closed_ends_its_jobs() -> None:
    """`close` waits for what was submitted, and what was submitted ends."""
    engine = Engine({"default": SPEC}, "cpu", "none", max_batch_rows=8)
    futures = [engine.submit(job(num_inference_steps=2), Control()) for _ in range(3)]
    engine.close()
    assert all(future.done() and future.result().images for future in futures)


def test_pictures_that_fit_one_at_a_time_are_decoded(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder with memory for one image decodes a job's four, the same as at once.

    To a fortieth of a pixel value of 255; 2e-6 was measured for the decoder's rounding. The next
    job's are decoded one at a time from the start.
    """
    own, failed = Rounds(model=rounds.runner.model), list[int]()
    wanted = small(num_inference_steps=2, num_images_per_prompt=4, output_type="npy")
    at_once = rounds.result(wanted).images
    usual = rounds.pipe.vae.decode

    def decode(latents: torch.Tensor, **options: Any) -> Any:
        if len(latents) > 1:
            failed.append(len(latents))
            raise torch.OutOfMemoryError("full")
        return usual(latents, **options)

    monkeypatch.setattr(rounds.pipe.vae, "decode", decode)
    for _ in range(2):
        for ours, theirs in zip(own.result(wanted).images, at_once, strict=True):
            assert abs(ours.pixels - theirs.pixels).max() < 1e-4
        assert failed == [4, 2]


def test_what_does_not_fit_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that does not fit is out of memory, also where a library has its own error for it."""
    rounds = Rounds()

    def fail(*_args: Any, **_options: Any) -> NoReturn:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")

    wanted = job(num_inference_steps=2)
    rounds.result(wanted)
    monkeypatch.setattr(rounds.pipe.unet, "forward", fail)
    with pytest.raises(DeviceOutOfMemoryError):
        rounds.result(wanted)


def test_latents_beyond_half_precision_are_refused() -> None:
    """Latents that become infinite in the model's precision are refused by field."""
    import safetensors.torch

    from worker.errors import BadRequestError

    half = Rounds(SPEC.model_copy(update={"dtype": "float16"}))
    start = safetensors.torch.save({"x": torch.full((1, 4, 16, 16), 1e5)})
    with pytest.raises(BadRequestError) as refused:
        half.result(job(num_inference_steps=2, latents=start))
    assert refused.value.details["faults"][0]["where"] == "latents"


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_no_sampler_clips_latents(name: str) -> None:
    """Where a model's own scheduler has no `clip_sample`, the class's default True is not used."""
    clipped, plain = Rounds(), Rounds()
    config = dict(plain.pipe.scheduler.config)
    euler = diffusers.EulerDiscreteScheduler.from_config(config)
    clipped.pipe.scheduler = diffusers.EulerDiscreteScheduler(
        **{key: euler.config[key] for key in ("beta_end", "beta_start", "beta_schedule")},
        timestep_spacing="trailing",
    )
    wanted = job(num_inference_steps=4, scheduler=name)
    made = latents_of(clipped.result(wanted))
    assert float(made.abs().max()) > 1.5
    if name == "ddim":
        options = {"set_alpha_to_one": True}
        plain.pipe.scheduler = type(plain.pipe.scheduler).from_config(config, **options)
        assert_close(made, latents_of(plain.result(wanted)))


def test_rows_are_a_maximum_at_every_size() -> None:
    """`max_batch_rows` holds for latents smaller than the model's own, too."""
    rounds = Rounds(max_batch_rows=8)
    assert rounds.runner.unet.capacity.limit(4, 4) == 8
    assert rounds.runner.unet.capacity.limit(64, 64) == 1


def test_an_evicted_model_is_gone_before_the_next_is_there() -> None:
    """With `max_models` 1, two models are never in memory together."""
    import gc
    import weakref

    held: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def loader(*given: Any, **options: Any) -> LoadedModel:
        alive.append(sum(each() is not None for each in held))
        model = load_model(*given, **options)
        held.append(weakref.ref(model.pipeline.unet))
        return model

    engine = Engine({"a": SPEC, "b": SPEC}, "cpu", "none", max_batch_rows=8, loader=loader)
    gc.disable()
    try:
        for model in ("a", "b", "a"):
            wanted = job(num_inference_steps=1, model=model)
            assert engine.submit(wanted, Control()).result(timeout=60).images
    finally:
        gc.enable()
    engine.close()
    assert alive == [0, 0, 0]
