"""LoRA weights of the settings: equal to diffusers alone, at any scale of a job.

The weights are made on the spot for the bundled model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

from tests.engine.cases import slow
from tests.engine.diffusers_alone import OTHER, bare, plain, save_lora
from tests.engine.jobs import SPEC, Make, Rounds, apart, assert_close, job, latents_of, upstream
from worker.config.models import Lora
from worker.engine.loading import model_loader
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of LoRA weights."""
    return save_lora(tmp_path_factory.mktemp("lora"), 1)


def adapted(*loras: tuple[str, float]) -> Rounds:
    """The bundled model as the worker loads it with LoRA weights at the settings' scales."""
    on_top = tuple(Lora(path=path, scale=scale) for path, scale in loras)
    return Rounds(SPEC.model_copy(update={"lora": on_top}))


@pytest.fixture(scope="module")
def with_lora(lora: str) -> Rounds:
    """The bundled model with the LoRA weights at a scale of 0.8."""
    return adapted((lora, 0.8))


@pytest.fixture(scope="module")
def theirs(lora: str) -> Any:
    """The bundled model with the same LoRA weights, by diffusers alone."""
    pipe = bare()
    pipe.load_lora_weights(lora, adapter_name="own")
    pipe.set_adapters(["own"], [0.8])
    return pipe


@pytest.mark.parametrize("scale", [0.5, *slow(None, 1.0, 2.0)])
def test_a_scale_is_diffusers_scale(with_lora: Rounds, theirs: Any, scale: float | None) -> None:
    """A job's LoRA scale is `cross_attention_kwargs={"scale": …}`, for text encoder and UNet.

    It multiplies the settings' scale, which holds without one.
    """
    ours = latents_of(with_lora.result(job(sag_scale=0.0, lora_scale=scale)))
    kwargs = {} if scale is None else {"cross_attention_kwargs": {"scale": scale}}
    assert_close(ours, plain(theirs, **kwargs))
    assert apart(ours, plain(bare())) > OTHER


@pytest.mark.parametrize("sag_scale", [0.75, *slow(0.0)])
def test_no_scale_is_no_lora(with_lora: Rounds, make: Make, sag_scale: float) -> None:
    """At scale 0 a model works as without LoRA, and the next job has LoRA again."""
    before = latents_of(with_lora.result(job(sag_scale=sag_scale)))
    off = latents_of(with_lora.result(job(sag_scale=sag_scale, lora_scale=0.0)))
    assert_close(off, latents_of(make(sag_scale=sag_scale)))
    assert torch.equal(latents_of(with_lora.result(job(sag_scale=sag_scale))), before)
    assert apart(before, off) > OTHER


def test_scales_of_jobs_at_once_do_not_mix(with_lora: Rounds) -> None:
    """Jobs of several LoRA scales at once are each equal to themselves alone."""
    scales = (None, 0.0, 0.5, 0.5)
    wanted = [job(seeds=(n,), lora_scale=scale) for n, scale in enumerate(scales)]
    alone = [latents_of(with_lora.result(each)) for each in wanted]
    together = [with_lora.submit(each) for each in wanted]
    with_lora.run()
    for ours, expected in zip(together, alone, strict=True):
        assert_close(latents_of(ours.result(timeout=0)), expected)
    settled = {layer.scaling["lora0"] for layer in lora_layers(with_lora)}
    assert settled == {0.8}


def lora_layers(rounds: Rounds) -> list[Any]:
    parts = (rounds.pipe.unet, rounds.pipe.text_encoder)
    return [each for part in parts for each in part.modules() if hasattr(each, "lora_A")]


@pytest.mark.parametrize("guidance_scale", [3.0, *slow(1.0)])
def test_the_scale_holds_in_the_degraded_pass(
    with_lora: Rounds, lora: str, guidance_scale: float
) -> None:
    """A job's scale of a half equals settings of half the scale, with SAG on.

    With such settings no pass can lose the job's scale. Upstream's degraded pass does, and runs at
    the settings' scale.
    """
    ours = latents_of(with_lora.result(job(lora_scale=0.5, guidance_scale=guidance_scale)))
    half = adapted((lora, 0.4))
    assert_close(ours, latents_of(half.result(job(guidance_scale=guidance_scale))))
    assert_close(ours, upstream(half.pipe, guidance_scale=guidance_scale))
    lost = upstream(
        with_lora.pipe, guidance_scale=guidance_scale, cross_attention_kwargs={"scale": 0.5}
    )
    assert apart(ours, lost) > 10 * apart(ours, upstream(half.pipe, guidance_scale=guidance_scale))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Already found a .peft_config:UserWarning")
def test_many_loras_add_up(tmp_path: Path, lora: str) -> None:
    """Several LoRA weights each have their scale in the settings; a job's multiplies them all."""
    second = save_lora(tmp_path, 2)
    both = adapted((lora, 0.5), (second, 0.3))
    pipe = bare()
    pipe.load_lora_weights(lora, adapter_name="a")
    pipe.load_lora_weights(second, adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.5, 0.3])
    expected = plain(pipe)
    assert_close(latents_of(both.result(job(sag_scale=0.0))), expected)
    pipe.set_adapters(["a", "b"], [0.25, 0.15])
    ours = latents_of(both.result(job(sag_scale=0.0, lora_scale=0.5)))
    assert_close(ours, plain(pipe))
    assert apart(ours, expected) > OTHER


@pytest.mark.parametrize("kind", ["missing", "junk", "pickled", "of-another-model"])
def test_lora_weights_that_do_not_load_are_named(tmp_path: Path, lora: str, kind: str) -> None:
    """Missing or malformed LoRA weights fail the model's loading, with their path."""
    path = tmp_path / ("lora.bin" if kind == "pickled" else "lora.safetensors")
    match kind:
        case "junk":
            path.write_bytes(b"junk")
        case "pickled":
            torch.save(safetensors.torch.load_file(lora), path)
        case "of-another-model":
            weights = safetensors.torch.load_file(lora)
            wide = {name: torch.cat([each, each], dim=-1) for name, each in weights.items()}
            safetensors.torch.save_file(wide, path)
    spec = SPEC.model_copy(update={"lora": (Lora(path=str(path)),)})
    with pytest.raises(ModelLoadError) as failed:
        model_loader.load(spec, "cpu", "none")
    assert str(path) in failed.value.message
