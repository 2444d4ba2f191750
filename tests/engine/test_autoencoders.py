"""Other autoencoders than the bundled one, against diffusers, and encodes that fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import torch

from tests.engine import oracle
from tests.engine.attempts import new_batch
from tests.engine.jobs import Rounds, assert_close
from tests.engine.pictures import masked, picture
from tests.engine.small_models import save_with_vae, save_xl, spec, tiny_vae, vae_of
from tests.engine.test_families import in_company, texts, wanted
from worker.errors import BadRequestError

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


def encodes(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each call of the encoder."""
    calls: list[int] = []
    usual = rounds.pipe.vae.encode

    def encode(pixels: torch.Tensor) -> Any:
        calls.append(1)
        return usual(pixels)

    monkeypatch.setattr(rounds.pipe.vae, "encode", encode)
    return calls


def test_a_round_encodes_one_picture(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that wait do not hold up the calls of others; all of them are served."""
    rounds = new_batch(rounds)
    calls = encodes(rounds, monkeypatch)
    futures = [rounds.submit(wanted(num_inference_steps=20))]
    rounds.batch.step()
    futures += [rounds.submit(wanted(**masked(seed=number))) for number in range(5)]
    futures += [rounds.submit(wanted(seeds=(number,))) for number in range(3)]
    for count in range(1, 6):
        rounds.batch.step()
        assert len(calls) == 2 * count  # picture and masked picture
        started = [future.running() or future.done() for future in futures]
        assert started == [True] * (1 + count) + [False] * (5 - count) + [True] * 3
    rounds.run()
    assert len(calls) == 10
    assert all(future.result(timeout=0).images for future in futures)


@pytest.mark.parametrize(("strength", "count"), [(1.0, 1), (0.5, 2)])
def test_from_noise_alone_only_the_masked_picture_is_encoded(
    inpainting: Rounds, monkeypatch: pytest.MonkeyPatch, strength: float, count: int
) -> None:
    """A UNet made for inpainting takes nothing else of the picture."""
    calls = encodes(inpainting, monkeypatch)
    assert inpainting.result(wanted(**(masked() | {"strength": strength}))).images
    assert len(calls) == count


def test_a_picture_that_cannot_be_encoded_fails_alone(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encode that raises ends its own job, and no other that starts with it or runs."""
    rounds = new_batch(rounds)
    running = rounds.submit(wanted(num_inference_steps=12))
    rounds.batch.step()

    def broken(_: torch.Tensor) -> NoReturn:
        raise ValueError("broken")

    monkeypatch.setattr(rounds.pipe.vae, "encode", broken)
    futures = [rounds.submit(each) for each in (wanted(), wanted(**picture()), wanted(eta=0.0))]
    rounds.run()
    assert isinstance(futures.pop(1).exception(timeout=0), ValueError)
    assert all(future.result(timeout=0).images for future in (running, *futures))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("rounds", picture()),
        ("rounds", masked()),
        ("inpainting", masked()),
        ("inpainting", masked() | {"strength": 1.0}),
    ],
    ids=["picture", "mask", "model for inpainting", "all noise"],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_encoder_that_overflows_is_told_of_the_picture(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    changes: dict[str, Any],
    value: float,
) -> None:
    """The job is refused by its field `image`, with the precision, and guidance is not blamed."""
    rounds = new_batch(request.getfixturevalue(kind))
    usual = rounds.pipe.vae.encode

    def encode(pixels: torch.Tensor) -> Any:
        found = usual(pixels)
        found.latent_dist.mean = torch.full_like(found.latent_dist.mean, value)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(rounds.pipe.vae, "encode", encode)
        with pytest.raises(BadRequestError, match=r"image: can't be encoded: .* torch\.float32"):
            rounds.result(wanted(**changes))
    assert rounds.result(wanted(**changes)).images


@pytest.mark.parametrize("upcast", [True, False])
def test_an_autoencoder_that_overflows_is_in_float32(tmp_path: Path, upcast: bool) -> None:
    """`force_upcast` has it encode and decode in float32 beside a UNet in float16."""
    folder = save_xl(tmp_path / "xl", vae_of(force_upcast=upcast))
    rounds = Rounds(spec(folder).model_copy(update={"dtype": "float16"}))
    assert rounds.pipe.unet.dtype == torch.float16
    assert rounds.pipe.vae.dtype == (torch.float32 if upcast else torch.float16)
    each = wanted(num_inference_steps=2, output_type="npy", **picture())
    assert rounds.result(each).images[0].pixels.std() > 0
