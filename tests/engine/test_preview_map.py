"""The map from latents to colours: how near previews are to the picture, and when it is used."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.engine.jobs import Rounds, job, latents_of
from tests.engine.linear_autoencoders import (
    DecoderOnly,
    LinearAutoencoder,
    OverflowingAutoencoder,
    TinyAutoencoder,
    fitted,
)
from tests.engine.preview_pictures import PROMPTS, error, picture, pixels
from worker.engine import previews
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.loaded_model import LoadedModel

if TYPE_CHECKING:
    from PIL import Image


@pytest.fixture(scope="module")
def done(rounds: Rounds) -> list[tuple[torch.Tensor, Image.Image]]:
    """Final latents (1, c, h, w) and the picture of each prompt, after 6 steps."""
    futures = [
        [
            rounds.submit(job(prompts=(prompt,), num_inference_steps=6, output_type=kind))
            for kind in ("latent", "png")
        ]
        for prompt in PROMPTS
    ]
    rounds.run()
    results = [[future.result(timeout=0) for future in pair] for pair in futures]
    return [(latents_of(latent), png.images[0].pixels) for latent, png in results]


def test_a_preview_shows_the_picture(
    rounds: Rounds, done: list[tuple[torch.Tensor, Image.Image]]
) -> None:
    """A preview of final latents is the decoded picture at the latents' size, to 3 of 255.

    0.5 to 1.1 was measured (JPEG). The best single colour, the median, is off by 12 to 66; the
    linear map, with the bundled autoencoder, by 46 to 78.
    """
    ours, constant = [], []
    for latents, image in done:
        size = latents.shape[-1], latents.shape[-2]
        shown = pixels(picture(rounds.runner.preview(latents, 1.0)), size)
        true = pixels(image, size)
        ours.append(error(shown, true))
        constant.append(error(np.broadcast_to(np.median(true, axis=(0, 1)), true.shape), true))
    assert max(ours) < 3, ours
    assert min(constant) > 10, constant


def test_a_preview_is_nearer_to_its_own_picture(
    rounds: Rounds, done: list[tuple[torch.Tensor, Image.Image]]
) -> None:
    """Of the pictures of all prompts, a preview is nearest to its own."""
    size = (16, 16)
    true = [pixels(image, size) for _, image in done]
    for number, (latents, _) in enumerate(done):
        shown = pixels(picture(rounds.runner.preview(latents, 1.0)), size)
        errors = [error(shown, each) for each in true]
        assert int(np.argmin(errors)) == number, errors


@pytest.mark.parametrize("factor", [4, 8])
def test_the_map_is_exact_where_it_can_be(factor: int) -> None:
    """With a linear autoencoder a preview shows each cell in its colour.

    So the scaling factor, the shift and the order of axes are right.
    """
    vae = LinearAutoencoder(factor)
    pipe = SimpleNamespace(vae=vae, vae_scale_factor=factor)
    fitted = previews.fit(LoadedModel(StableDiffusion(), pipe, "cpu", "none"))
    assert fitted is not None
    colours = torch.zeros(1, 3, 16, 32) - 0.5
    colours[:, 0, :8] = 0.75
    colours[:, 1, :, :16] = 0.25
    whole = functional.interpolate(colours, scale_factor=factor)
    latents = vae.encode(whole).latent_dist.mean * vae.config.scaling_factor
    shown = picture(fitted.data_url(latents))
    assert shown.size == (128, 64)
    found = pixels(shown, (32, 16))
    expected = ((colours[0].movedim(0, -1) + 1) * 127.5).numpy()
    # The edges are soft, and so are JPEG's colours.
    inside = np.ones((16, 32), bool)
    inside[4:12] = inside[:, 12:20] = False
    assert np.abs(found - expected)[inside].max() < 8


def test_the_map_is_the_same_each_time(rounds: Rounds) -> None:
    """Two workers fit the same map; the fit does not use torch's global generator.

    The least-squares problem has 5 unknowns and a condition number of 14: 70 x EPS32 is 8e-6.
    """
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with torch.inference_mode():
        again = previews.fit(rounds.runner.model)
    assert torch.equal(torch.rand(3), expected)
    own = rounds.runner.preview_map
    assert again is not None
    assert own is not None
    assert torch.allclose(again.weights, own.weights, atol=1e-5)
    assert torch.allclose(again.bias, own.bias, atol=1e-5)


@pytest.mark.parametrize(
    ("unexplained", "offload", "by_map"),
    [(0.44, "none", False), (0.44, "model", True), (0.1, "none", True)],
)
def test_the_decoder_is_used_where_the_map_is_poor(
    rounds: Rounds,
    done: list[tuple[torch.Tensor, Image.Image]],
    monkeypatch: pytest.MonkeyPatch,
    unexplained: float,
    offload: str,
    by_map: bool,
) -> None:
    """A poor map is used only where decoding would move the UNet.

    The bundled autoencoder's map leaves 44 % of the variance, that of a linear one nothing.
    """
    runner, (latents, _) = rounds.runner, done[0]
    assert runner.preview_map is not None
    assert runner.preview_map.unexplained == pytest.approx(0.44, abs=0.01)
    linear = fitted(LinearAutoencoder(8))
    assert linear is not None
    # Residuals are roundings, below 1e-5 of the colours: 1e-10 of the variance.
    assert linear.unexplained < 1e-10
    changed = replace(runner.preview_map, unexplained=unexplained)
    monkeypatch.setattr(runner, "preview_map", changed)
    monkeypatch.setattr(runner, "model", replace(runner.model, offload=offload))
    vae = rounds.pipe.vae
    with torch.inference_mode():
        decoded = vae.decode(latents / vae.config.scaling_factor).sample
    by_decoder = previews.data_url(decoded[0].movedim(0, -1))
    expected = changed.data_url(latents) if by_map else by_decoder
    assert runner.preview(latents, 1.0) == expected
    assert by_decoder != changed.data_url(latents)


def test_a_tiny_autoencoder_has_a_map() -> None:
    """A tiny autoencoder has the map of one that gives a distribution around its latents.

    To the tolerance of `test_the_map_is_the_same_each_time`: where its data lies decides which
    kernel a product takes.
    """
    tiny, usual = fitted(TinyAutoencoder(8)), fitted(LinearAutoencoder(8))
    assert tiny is not None
    assert usual is not None
    assert torch.allclose(tiny.weights, usual.weights, atol=1e-5)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDNN_STATUS_ALLOC_FAILED"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_device_is_not_the_encoder(error: RuntimeError) -> None:
    """A device that is full for a moment, or failed, fails the load instead of all previews."""
    vae = LinearAutoencoder(8)

    def encode(_: torch.Tensor) -> None:
        raise error

    vae.encode = encode  # type: ignore[method-assign,assignment]  # this object's only
    with pytest.raises(type(error), match=str(error)):
        fitted(vae)


@pytest.mark.parametrize("vae", [OverflowingAutoencoder(8), DecoderOnly()])
def test_previews_are_no_condition(
    rounds: Rounds,
    done: list[tuple[torch.Tensor, Image.Image]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    vae: Any,
) -> None:
    """Without a usable encoder images are made; previews by the decoder, if it moves no network."""
    assert fitted(vae) is None
    assert "previews can't be mapped" in caplog.text
    runner, (latents, _) = rounds.runner, done[0]
    monkeypatch.setattr(runner, "preview_map", None)
    assert runner.preview(latents, 1.0)
    monkeypatch.setattr(runner, "model", replace(runner.model, offload="model"))
    assert runner.preview(latents, 1.0) is None
