"""Tensors by reference: used as diffusers would, or refused by field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

from tests.engine.jobs import Rounds, assert_close, job, latents_of, upstream
from worker.engine import safetensors_io
from worker.errors import BadRequestError

if TYPE_CHECKING:
    from tests.engine.jobs import Make


def packed(**named: torch.Tensor) -> bytes:
    return safetensors.torch.save(named)


def test_given_latents_are_where_it_starts(rounds: Rounds, make: Make) -> None:
    """`latents` replace the drawn ones, as in diffusers."""
    start = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    assert_close(
        latents_of(make(latents=packed(x=start))), upstream(rounds.pipe, latents=start.clone())
    )


def test_given_embeddings_stand_for_the_prompt(rounds: Rounds, make: Make) -> None:
    """`prompt_embeds` of a prompt give the prompt's picture, with or without negative ones."""
    pipe = rounds.pipe
    prompt = "a large red star on a blue background"
    with torch.inference_mode():
        embeds, negative = pipe.encode_prompt(prompt, "cpu", 1, True)  # diffusers' signature
    expected = latents_of(make())
    given = packed(e=embeds.contiguous())
    assert torch.equal(latents_of(make(prompts=(), prompt_embeds=given)), expected)
    both = make(
        prompts=(), prompt_embeds=given, negative_prompt_embeds=packed(e=negative.contiguous())
    )
    assert torch.equal(latents_of(both), expected)


def test_a_latent_result_is_a_latent_input(make: Make) -> None:
    """The file of `output_type` latent is read back as `latents` unchanged."""
    picture = make().images[0]
    back = safetensors_io.read(safetensors_io.write(picture.pixels), "latents", (1, 4, 16, 16))
    assert back is not None
    assert torch.equal(back[0], picture.pixels)


@pytest.mark.parametrize(
    ("field", "data", "says"),
    [
        ("latents", b"not safetensors", "safetensors"),
        ("latents", b"", "safetensors"),
        ("latents", packed(x=torch.zeros(1, 4, 8, 8)), "1 x 4 x 16 x 16"),
        ("latents", packed(x=torch.zeros(1, 4, 16, 16, dtype=torch.int64)), "floats"),
        ("latents", packed(x=torch.full((1, 4, 16, 16), float("nan"))), "finite"),
        ("latents", packed(x=torch.zeros(1), y=torch.zeros(1)), "exactly one"),
        ("prompt_embeds", packed(x=torch.zeros(1, 32, 64)), "n x tokens x 128"),
        ("prompt_embeds", packed(x=torch.zeros(32, 128)), "n x tokens x 128"),
        ("prompt_embeds", packed(x=torch.zeros(5, 32, 128)), "<= 4"),
        ("prompt_embeds", packed(x=torch.zeros(1, 33, 128)), "<= 32"),
        ("negative_prompt_embeds", packed(x=torch.zeros(2, 32, 128)), "as many"),
        ("negative_prompt_embeds", packed(x=torch.zeros(1, 31, 128)), "1 of 32"),
        ("latents", packed(x=torch.zeros(1, 4, 16, 16).to(torch.float8_e4m3fn)), "16 to 64 bit"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(
    make: Make, field: str, data: bytes, says: str
) -> None:
    """A wrong file, shape, type or value is refused by field, with what would fit."""
    changes: dict[str, Any] = {field: data}
    if field == "prompt_embeds":
        changes["prompts"] = ()
    with pytest.raises(BadRequestError) as refused:
        make(**changes)
    fault = refused.value.details["faults"][0]
    assert fault["where"] == field
    assert says in fault["limit"]


@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("model", ["rounds", "half"])
def test_latents_come_in_any_precision(
    request: pytest.FixtureRequest, model: str, given: torch.dtype
) -> None:
    """Latents of any float type are converted to the model's."""
    data = packed(x=torch.zeros(1, 4, 16, 16, dtype=given))
    made = request.getfixturevalue(model).result(job(latents=data, num_inference_steps=1))
    assert torch.isfinite(latents_of(made)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_what_is_packed_comes_back(dtype: torch.dtype) -> None:
    """Tensors of any type come back unchanged, also scalars and views of each other."""
    whole = torch.arange(24).reshape(2, 3, 4).to(dtype)
    named = {"a": whole, "b": whole[1], "c": whole[0, 0, 0], "d": whole.movedim(0, 2), "e": whole}
    header, back = safetensors_io.unpack(safetensors_io.pack({"n": [1, "x"]}, named))
    assert header == {"n": [1, "x"]}
    assert back.keys() == named.keys()
    for name, tensor in named.items():
        assert back[name].dtype == dtype
        assert torch.equal(back[name], tensor)


@pytest.mark.parametrize(
    ("old", "new"), [(b'"e"', b'"f"'), (b"[1, ", b"[2, "), (b"\7" * 8, b"\7" * 7 + b"\6")]
)
def test_what_was_changed_does_not(old: bytes, new: bytes) -> None:
    """A changed name, header or value is an error."""
    data = safetensors_io.pack({"n": [1, "x"]}, {"e": torch.full((8,), 7, dtype=torch.uint8)})
    assert data.count(old) == 1
    with pytest.raises(ValueError, match="digest"):
        safetensors_io.unpack(data.replace(old, new))
