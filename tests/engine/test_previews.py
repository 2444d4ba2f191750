"""Previews: how near they are to the picture, and with which steps they come."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from tests.engine.cases import slow
from tests.engine.jobs import Rounds, job, latents_of
from worker.engine import previews
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.loaded_model import LoadedModel
from worker.engine.previews import SIDE_PX, PreviewMap
from worker.job_control import Control, Step

if TYPE_CHECKING:
    from tests.engine.jobs import Make
    from worker.engine.job import JobResult

PROMPTS = (
    "a large red star on a blue background",
    "a small green ring on a white background",
    "a large yellow circle on a purple background",
    "a cyan cross left of a pink square on a black background",
)

CPU = torch.device("cpu")


def picture(url: str | None) -> Image.Image:
    """What a data URL shows; it must be a JPEG."""
    head, data = str(url).split(",", 1)
    assert head == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert image.format == "JPEG"
    return image


def pixels(image: Image.Image, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """An image at a size, width by height, its colours averaged."""
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX), np.float32)


def error(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """The mean difference, of 255."""
    return float(np.abs(ours - theirs).mean())


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


class LinearAutoencoder:
    """Colours to latents by a matrix, cell by cell, for which the map is exact."""

    dtype = torch.float32
    config = SimpleNamespace(scaling_factor=0.5)

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.matrix = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        self.shift = torch.tensor([0.3, -0.2, 0.5, 0.1])

    def encode(self, pictures: torch.Tensor) -> Any:
        """Pictures (n, 3, h, w) in -1 … 1 to a distribution with a mean (n, 4, h / f, w / f)."""
        assert pictures.shape[1] == 3
        assert float(pictures.abs().max()) <= 1
        cells = functional.avg_pool2d(pictures, self.factor).movedim(1, -1)
        mean = (cells @ self.matrix + self.shift).movedim(-1, 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean))


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
    ("cells", "shown"),
    [
        ((16, 16), (128, 128)),
        ((8, 16), (64, 128)),
        ((18, 24), (96, 128)),
        ((128, 8), (128, 8)),
        ((200, 100), (128, 64)),
        ((256, 1), (128, 1)),
    ],
)
def test_a_preview_keeps_the_aspect(cells: tuple[int, int], shown: tuple[int, int]) -> None:
    """A preview keeps the aspect, and each side is at least 1 px and at most 128 px."""
    flat = PreviewMap(torch.zeros(4, 3), torch.tensor([1.0, -1.0, 0.0]))
    image = picture(flat.data_url(torch.randn(1, 4, *cells)))
    assert (image.height, image.width) == shown
    assert max(image.size) <= SIDE_PX
    assert error(pixels(image, (8, 8)), np.array([255, 0, 128], np.float32)) < 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_of_any_precision_are_shown(dtype: torch.dtype) -> None:
    """Half-precision latents, and those beyond black and white, have a preview."""
    steep = PreviewMap(torch.eye(4, 3) * 1.7, torch.zeros(3))
    latents = torch.ones(1, 4, 8, 8, dtype=dtype)
    latents[:, 1] = -1
    image = picture(steep.data_url(latents))
    assert error(pixels(image, (8, 8)), np.array([255, 0, 255], np.float32)) < 3


def seen(make: Make, **changes: Any) -> tuple[JobResult, list[Step]]:
    """The result and the reported steps of a job of 12 steps at 32 px."""
    steps: list[Step] = []
    result = make(
        control=Control(on_step=steps.append),
        **({"num_inference_steps": 12, "height": 32, "width": 32} | changes),
    )
    return result, steps


@pytest.mark.parametrize(("every", "scheduler"), [(5, None), *slow((1, "heun"), (13, "pndm"))])
def test_previews_come_with_their_steps(make: Make, every: int, scheduler: str | None) -> None:
    """Each step is reported once, in order, every so many with a preview; latents are the same."""
    result, steps = seen(make, preview_every=every, scheduler=scheduler)
    assert [step.step for step in steps] == list(range(1, 13))
    assert [step.step for step in steps if step.preview] == list(range(every, 13, every))
    without, steps = seen(make, scheduler=scheduler)
    assert torch.equal(latents_of(result), latents_of(without))
    assert not any(step.preview for step in steps)


@pytest.mark.parametrize("scheduler", ["euler", *slow("ddpm", "dpmpp_2m")])
def test_the_last_preview_is_of_the_picture(rounds: Rounds, make: Make, scheduler: str) -> None:
    """Where the last step gives x0, its preview is that of the final latents."""
    result, steps = seen(make, preview_every=12, scheduler=scheduler, height=64, width=96)
    shown = picture(steps[-1].preview)
    of_result = picture(rounds.runner.preview(latents_of(result), 1.0))
    assert shown.size == of_result.size == (128, 85)
    assert error(pixels(shown, (24, 16)), pixels(of_result, (24, 16))) < 0.5


def test_previews_come_nearer_to_the_last(make: Make) -> None:
    """Previews show x0, not the noisy latents: step by step they near the final picture."""
    _, steps = seen(make, preview_every=2, height=64, width=64)
    shown = [pixels(picture(step.preview), (16, 16)) for step in steps if step.preview]
    errors = [error(each, shown[-1]) for each in shown]
    assert errors[-2] < errors[2] < errors[0]
    assert errors[-2] < 8


@pytest.mark.parametrize("max_batch_rows", [3, *slow(2, 64)])
def test_previews_are_of_the_first_image(rounds: Rounds, max_batch_rows: int) -> None:
    """Of several images the first is shown, also where calls have too few rows for all."""
    narrow = Rounds(model=rounds.runner.model, max_batch_rows=max_batch_rows)
    steps = list[Step]()
    wanted = job(prompts=PROMPTS[:3], seeds=(5, 6, 7), num_inference_steps=4, preview_every=4)
    result = narrow.result(wanted, Control(on_step=steps.append))
    final = [
        pixels(picture(rounds.runner.preview(latents[None], 1.0)), (16, 16))
        for latents in latents_of(result)
    ]
    for shown in (pixels(picture(step.preview), (16, 16)) for step in steps if step.preview):
        assert int(np.argmin([error(shown, each) for each in final])) == 0


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


def test_pure_noise_can_be_shown(rounds: Rounds) -> None:
    """An x0 is given as alpha x0 and divided by alpha, but not by an alpha near 0.

    So the first step has a preview too.
    """
    x0 = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    preview = rounds.runner.preview
    assert preview(x0, 0.0) == preview(x0, previews.MIN_ALPHA)
    assert picture(preview(x0, 0.0)).size == (128, 128)
    for alpha in (0.5, 0.25):
        assert preview(x0 * alpha, alpha) == preview(x0, 1.0)
    assert preview(x0, 0.5) != preview(x0, 1.0)


class TinyAutoencoder(LinearAutoencoder):
    """Gives latents themselves, as diffusers' `AutoencoderTiny` does."""

    def encode(self, pictures: torch.Tensor) -> Any:
        """Pictures to latents."""
        return SimpleNamespace(latents=super().encode(pictures).latent_dist.mean)


class OverflowingAutoencoder(LinearAutoencoder):
    """Its encoder overflows in half precision."""

    def encode(self, pictures: torch.Tensor) -> Any:
        """Pictures to no numbers."""
        mean = super().encode(pictures).latent_dist.mean * float("inf")
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean))


class DecoderOnly:
    """An autoencoder without an encoder."""

    dtype = torch.float32


def fitted(vae: Any) -> PreviewMap | None:
    pipe = SimpleNamespace(vae=vae, vae_scale_factor=8)
    return previews.fit(LoadedModel(StableDiffusion(), pipe, "cpu", "none"))


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
