"""Other autoencoders than the bundled one, against diffusers, and encodes that fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.engine import oracle
from tests.engine.jobs import Rounds, assert_close
from tests.engine.pictures import masked, picture
from tests.engine.small_models import save_with_vae, save_xl, tiny_vae, vae_of
from tests.engine.test_families import in_company, spec, texts, wanted

if TYPE_CHECKING:
    from pathlib import Path

MOMENTS = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.8, 1.3, 1.0, 0.5]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """The bundled model with an autoencoder that has no distribution."""
    return Rounds(spec(save_with_vae(tmp_path_factory.mktemp("tiny"), tiny_vae())))


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """Stable Diffusion XL with a mean and a deviation for each channel of its latents."""
    return Rounds(spec(save_xl(tmp_path_factory.mktemp("scaled"), vae_of(**MOMENTS))))


@pytest.mark.parametrize("make", [picture, masked])
@pytest.mark.parametrize("name", ["ddim", "euler_a"])
def test_nothing_is_drawn_for_a_tiny_autoencoder(tiny: Rounds, name: str, make: Any) -> None:
    """It has no deviation, so the noise is the first that the seed gives, as in diffusers."""
    each = wanted(scheduler=name, **make(48, 64))
    assert_close(in_company(tiny, each, texts()), oracle.plain(tiny.pipe, each))


def test_a_picture_is_scaled_by_each_channels_moments(scaled: Rounds) -> None:
    """`latents_mean` and `latents_std` give the latents of diffusers' image to image."""
    assert scaled.pipe.vae.config.latents_std == MOMENTS["latents_std"]
    each = wanted(**picture())
    assert_close(in_company(scaled, each, texts()), oracle.plain(scaled.pipe, each))


def test_latents_are_decoded_by_each_channels_moments(scaled: Rounds) -> None:
    """They give the image that diffusers decodes."""
    made = scaled.result(wanted(output_type="npy")).images[0].pixels
    theirs = type(scaled.pipe)(**scaled.pipe.components, add_watermarker=False)(
        prompt="a large red star on a blue background", num_inference_steps=8, guidance_scale=3.0,
        generator=[torch.Generator("cpu").manual_seed(5)], output_type="np",
    ).images[0]  # fmt: skip
    assert_close(torch.from_numpy(made), torch.from_numpy(theirs), 1e-3)


@pytest.mark.parametrize("upcast", [True, False])
def test_an_autoencoder_that_overflows_is_in_float32(tmp_path: Path, upcast: bool) -> None:
    """`force_upcast` has it encode and decode in float32 beside a UNet in float16."""
    folder = save_xl(tmp_path / "xl", vae_of(force_upcast=upcast))
    rounds = Rounds(spec(folder).model_copy(update={"dtype": "float16"}))
    assert rounds.pipe.unet.dtype == torch.float16
    assert rounds.pipe.vae.dtype == (torch.float32 if upcast else torch.float16)
    each = wanted(num_inference_steps=2, output_type="npy", **picture())
    assert rounds.result(each).images[0].pixels.std() > 0
