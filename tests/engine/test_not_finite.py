"""What half precision overflows is decoded in float32; what is no picture fails by its name."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.engine.attempts import small
from worker import metrics
from worker.engine.decoder import MAX_OVERFLOWS, Decoder
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.loaded_model import LoadedModel
from worker.errors import BadRequestError, NotFiniteError

if TYPE_CHECKING:
    from tests.engine.jobs import Rounds


class OverflowingVae(torch.nn.Module):
    """A decoder whose values half precision does not reach: 300 times 300 is above 65,504."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([300.0], dtype=dtype))
        self.config = SimpleNamespace(scaling_factor=1.0)
        self.decodes: list[torch.dtype] = []

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, as diffusers' own VAE has it."""
        return self.weight.dtype

    def decode(self, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        """Latents times 90,000 over 90,000."""
        assert not return_dict
        self.decodes.append(latents.dtype)
        return (latents * self.weight * 300 / 90_000,)


def made(vae: OverflowingVae) -> Decoder:
    """A decoder of a model on the CPU."""
    pipe = SimpleNamespace(vae=vae, unet=SimpleNamespace(config=SimpleNamespace(sample_size=1)))
    return Decoder(LoadedModel(StableDiffusion(), pipe, "cpu", "none"), 8)


def test_an_overflow_is_decoded_again(caplog: pytest.LogCaptureFixture) -> None:
    """An image that overflows half precision is decoded again in float32, logged and counted.

    From the third time on everything is decoded in float32.
    """
    vae, before = OverflowingVae(torch.float16), metrics.DECODED_AGAIN._value.get()
    decoder, latents = made(vae), torch.ones(2, 4, 1, 1, dtype=torch.float16)
    for number in range(1, 5):
        with torch.inference_mode():
            images = decoder._decode_once(latents)
        assert torch.equal(torch.cat(images), torch.ones(2, 4, 1, 1))
        assert vae.dtype == (torch.float16 if number < MAX_OVERFLOWS else torch.float32)
    assert vae.decodes == [torch.float16, torch.float32] * 3 + [torch.float32]
    assert metrics.DECODED_AGAIN._value.get() - before == 6
    assert [each.levelno for each in caplog.records] == [logging.WARNING] * 3
    assert caplog.text.count("float32 from now on") == 1


def test_only_what_overflowed_is_decoded_again() -> None:
    """Only an image that overflowed is decoded again; latents that are no numbers stay so."""
    vae = OverflowingVae(torch.float16)
    decoder = made(vae)
    rows = [torch.full((1, 4, 1, 1), each, dtype=torch.float16) for each in (0.1, 1.0)]
    rows.append(torch.full((1, 4, 1, 1), float("nan"), dtype=torch.float16))
    with torch.inference_mode():
        small, large, broken = decoder._decode_once(torch.cat(rows))
    assert (small.dtype, large.dtype, broken.dtype) == (
        torch.float16, torch.float32, torch.float16,
    )  # fmt: skip
    assert bool(small.isfinite().all())
    assert torch.equal(large, torch.ones(1, 4, 1, 1))
    assert bool(broken.isnan().all())


def test_latents_that_overflow_when_they_are_scaled_are_scaled_in_float32() -> None:
    """Latents that overflow when they are scaled, as 10,000 / 0.125, are scaled in float32."""
    vae = OverflowingVae(torch.float16)
    vae.config.scaling_factor = 0.125
    with torch.inference_mode():
        (image,) = made(vae)._decode_once(torch.full((1, 4, 1, 1), 1e4, dtype=torch.float16))
    assert torch.equal(image, torch.full((1, 4, 1, 1), 8e4))


def test_without_memory_for_float32_the_vae_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory for float32 the VAE is converted back whole, and decodes the next image."""
    vae = OverflowingVae(torch.float16)
    convert, calls = vae.to, list[torch.dtype]()

    def to(dtype: torch.dtype) -> None:
        calls.append(dtype)
        convert(dtype)
        if dtype == torch.float32:
            raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(vae, "to", to)
    with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError):
        made(vae)._decode_once(torch.ones(1, 4, 1, 1, dtype=torch.float16))
    assert calls == [torch.float32, torch.float16]
    assert vae.dtype == torch.float16


@pytest.mark.parametrize("output_type", ["png", "npy", "latent"])
def test_no_picture_of_what_is_no_number(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch, output_type: str
) -> None:
    """The job fails as `not_finite`, and the next one is served."""
    wanted = small(output_type=output_type)
    call = rounds.runner.unet._call

    def broken(*args: Any, **options: Any) -> tuple[torch.Tensor, Any]:
        output, sums = call(*args, **options)
        return output * float("nan"), sums

    with monkeypatch.context() as patch:
        patch.setattr(rounds.runner.unet, "_call", broken)
        with pytest.raises(NotFiniteError, match="seed 5 are no numbers") as failed:
            rounds.result(wanted)
    assert (failed.value.error.code, failed.value.error.retryable) == ("not_finite", False)
    assert rounds.result(wanted).images


def test_a_vae_that_overflows_in_float32_fails_its_job(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that can't be decoded is no black picture."""
    usual = rounds.pipe.vae.decode
    with monkeypatch.context() as patch:
        patch.setattr(
            rounds.pipe.vae,
            "decode",
            lambda *args, **options: (usual(*args, **options)[0] / 0.0,),
        )
        with pytest.raises(NotFiniteError, match="can't be decoded"):
            rounds.result(small(output_type="png"))


def test_the_models_own_size_has_the_workers_limit(rounds: Rounds) -> None:
    """A request without a size can't ask for more than one with it."""
    with pytest.raises(BadRequestError, match="height: is the model's own 64 px") as refused:
        rounds.result(small(height=None, width=None, max_side_px=32))
    assert refused.value.details["faults"][0]["limit"] == "<= 32"
