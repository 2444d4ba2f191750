"""LoRA, textual inversion and `clip_skip`: equal to diffusers alone.

LoRA weights and tokens are made on the spot for the bundled model.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from tests.engine.cases import rotated, slow
from tests.engine.jobs import SPEC, Rounds, apart, assert_close, job, latents_of, upstream
from worker.config.models import Lora, TextualInversion
from worker.engine.loading import model_loader
from worker.errors import BadRequestError, ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.jobs import Make

PROMPT = "a large red star on a blue background"
#: Latents that must differ do so by more than this, a hundred times the rounding of three steps.
OTHER = 0.05


def bare() -> Any:
    """The bundled model by diffusers alone."""
    pipe = StableDiffusionPipeline.from_pretrained(
        SPEC.path, safety_checker=None, requires_safety_checker=False, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def plain(pipe: Any, **arguments: Any) -> torch.Tensor:
    """Latents by `StableDiffusionPipeline`'s own call, with the fields of `job` but SAG."""
    given = {
        "prompt": PROMPT,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "generator": [torch.Generator("cpu").manual_seed(5)],
        "output_type": "latent",
    }
    latents: torch.Tensor = pipe(**(given | arguments)).images
    return latents


def save_lora(folder: Path, seed: int) -> str:
    """Random LoRA weights, of rank 4, for attention in the UNet and in the text encoder."""
    pipe, generator = bare(), torch.Generator().manual_seed(seed)
    layers = {}
    for part, targets in (
        ("unet", ["to_q", "to_k", "to_v"]),
        ("text_encoder", ["q_proj", "v_proj"]),
    ):
        module = getattr(pipe, part)
        module.requires_grad_(False)
        module.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets))
        state = get_peft_model_state_dict(module)
        layers[f"{part}_lora_layers"] = {
            name: torch.randn(weight.shape, generator=generator) * 0.15
            for name, weight in state.items()
        }
    StableDiffusionPipeline.save_lora_weights(folder, safe_serialization=True, **layers)
    return str(folder / "pytorch_lora_weights.safetensors")


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


@pytest.mark.parametrize("kind", ["missing", "junk", "wrong-width"])
def test_a_token_that_does_not_load_is_named(tmp_path: Path, kind: str) -> None:
    """A missing or malformed textual inversion fails the model's loading, with its path."""
    path = tmp_path / "ring.safetensors"
    match kind:
        case "junk":
            path.write_bytes(b"junk")
        case "wrong-width":
            save_word(path, torch.ones(77))
    with pytest.raises(ModelLoadError) as failed:
        model_loader.load(spoken(path), "cpu", "none")
    assert str(path) in failed.value.message


def save_word(path: Path, vectors: torch.Tensor) -> None:
    safetensors.torch.save_file({"<ring>": vectors}, path)


def spoken(path: Path) -> Any:
    """The bundled model's settings with a token of its own."""
    token = TextualInversion(path=str(path), token="<ring>")
    return SPEC.model_copy(update={"textual_inversion": (token,)})


@pytest.mark.parametrize("vectors", [3, *slow(1)])
def test_a_token_is_diffusers_own(tmp_path: Path, make: Make, vectors: int) -> None:
    """A token of the settings is encoded as by diffusers, in the prompt and the negative prompt.

    With one vector or several; the model without it encodes something else.
    """
    path = tmp_path / "ring.safetensors"
    taught = torch.randn(vectors, 128, generator=torch.Generator().manual_seed(0))
    save_word(path, taught[0] if vectors == 1 else taught)
    rounds, pipe = Rounds(spoken(path)), bare()
    pipe.load_textual_inversion(str(path), token="<ring>")
    prompt = "a large red <ring> on a blue background"
    ours = rounds.result(job(sag_scale=0.0, prompts=(prompt,)))
    assert_close(latents_of(ours), plain(pipe, prompt=prompt))
    assert ours.truncated == ()
    assert apart(latents_of(ours), latents_of(make(sag_scale=0.0, prompts=(prompt,)))) > OTHER
    against = latents_of(rounds.result(job(sag_scale=0.0, negative_prompts=("<ring>",))))
    assert_close(against, plain(pipe, negative_prompt="<ring>"))
    assert_close(latents_of(rounds.result(job())), latents_of(make()))


def test_a_token_of_many_vectors_counts_as_many(tmp_path: Path) -> None:
    """The length of a prompt is counted in the vectors of its tokens."""
    path = tmp_path / "ring.safetensors"
    save_word(path, torch.randn(9, 128, generator=torch.Generator().manual_seed(0)))
    rounds = Rounds(spoken(path))
    fits = "<ring> <ring> <ring>"
    assert rounds.result(job(prompts=(fits,))).truncated == ()
    (lost,) = rounds.result(job(prompts=(f"{fits} star blue red green",))).truncated
    assert lost == "green"


def encoded(pipe: Any, text: str, layers: int) -> torch.Tensor:
    """Embeddings of a text encoder that ends after so many layers and its last norm."""
    encoder = copy.deepcopy(pipe.text_encoder)
    encoder.encoder.layers = encoder.encoder.layers[:layers]
    ids = pipe.tokenizer(
        text, padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        embeds: torch.Tensor = encoder(ids)[0]
    return embeds


@pytest.mark.parametrize(("clip_skip", "guidance_scale"), rotated((0, 1, 2), (1.0, 3.0), slow))
def test_clip_skip_leaves_out_the_last_layers(
    rounds: Rounds, make: Make, clip_skip: int, guidance_scale: float
) -> None:
    """The prompt is encoded without the last layers, the negative prompt with all of them.

    As diffusers does, with versions of transformers where its own way works.
    """
    layers = len(rounds.pipe.text_encoder.encoder.layers)
    ours = make(sag_scale=0.0, clip_skip=clip_skip, guidance_scale=guidance_scale)
    pair = {
        "prompt": None,
        "prompt_embeds": encoded(rounds.pipe, PROMPT, layers - clip_skip),
        "negative_prompt_embeds": encoded(rounds.pipe, "", layers),
    }
    theirs = StableDiffusionPipeline(**rounds.pipe.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    assert_close(latents_of(ours), plain(theirs, guidance_scale=guidance_scale, **pair))
    whole = latents_of(make(sag_scale=0.0, guidance_scale=guidance_scale))
    assert (apart(latents_of(ours), whole) > OTHER) == (clip_skip > 0)


def test_clip_skips_of_jobs_at_once_do_not_mix(rounds: Rounds) -> None:
    """Prompts of different `clip_skip` that are encoded together do not affect each other."""
    wanted = [job(clip_skip=skip) for skip in (None, 1, 2)]
    alone = [latents_of(rounds.result(each)) for each in wanted]
    together = [rounds.submit(each) for each in wanted]
    rounds.run()
    for ours, expected in zip(together, alone, strict=True):
        assert_close(latents_of(ours.result(timeout=0)), expected)


@pytest.mark.parametrize("clip_skip", [3, 32])
def test_clip_skip_leaves_something(make: Make, clip_skip: int) -> None:
    """A `clip_skip` of all layers or more is refused by field."""
    with pytest.raises(BadRequestError) as refused:
        make(clip_skip=clip_skip)
    (fault,) = refused.value.details["faults"]
    assert fault["where"] == "clip_skip"
    assert str(clip_skip) in fault["what"]
