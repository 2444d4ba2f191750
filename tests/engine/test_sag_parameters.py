"""SAG's own parameters, in both families and with pictures, against the plain loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from api_contracts import GenerationRequest
from tests.engine import oracle
from tests.engine.jobs import Rounds, assert_close, job, latents_of
from tests.engine.pictures import masked, picture
from tests.engine.random_requests import under_sd15_noise
from tests.engine.small_models import spec
from tests.engine.test_families import in_company, wanted
from worker.engine.denoising import guidance

if TYPE_CHECKING:
    from collections.abc import Callable

LAYER = "up_blocks.1.attentions.0.transformer_blocks.0.attn1"
CHANGES: list[dict[str, Any]] = [
    {"sag_blur_sigma": 0.3},
    {"sag_blur_sigma": 2.5, "sag_mask_threshold": 0.8},
    {"sag_blur_sigma": 10.0},
    {"sag_mask_threshold": 0.0},
    {"sag_mask_threshold": 4.0},
    {"sag_start": 0.25, "sag_stop": 0.75},
    {"sag_stop": 0.5, "scheduler": "heun"},
    {"guidance_rescale": 0.7, "guidance_scale": 9.0},
    {"guidance_rescale": 1.0, "scheduler": "euler", "sag_blur_sigma": 1.7},
]


@pytest.fixture(scope="module")
def plain() -> Rounds:
    """The bundled model under a noise schedule that magnifies no rounding."""
    made = Rounds()
    under_sd15_noise(made.pipe)
    return made


def company() -> list[Any]:
    """Jobs with other values of the parameters, so that rows of one call differ in them."""
    return [
        wanted(sag_scale=0.75), wanted(sag_scale=0.75, sag_blur_sigma=4.0, guidance_scale=1.0),
        wanted(sag_scale=1.0, sag_mask_threshold=1.3, guidance_rescale=0.3),
    ]  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("start", [dict, picture, masked])
def test_with_others_it_is_the_loop(
    plain: Rounds, changes: dict[str, Any], start: Callable[[], Any]
) -> None:
    """Rows of one call have different values; each request is as if it were alone."""
    each = wanted(**({"sag_scale": 0.75} | start() | changes))
    assert_close(in_company(plain, each, company()), oracle.alone(plain.pipe, each))


@pytest.mark.parametrize("start", [dict, picture, masked])
@pytest.mark.parametrize("changes", [{}, CHANGES[1], CHANGES[5], CHANGES[8]], ids=str)
def test_in_xl_it_is_the_loop(
    xl: Rounds, changes: dict[str, Any], start: Callable[[], Any]
) -> None:
    """SAG's parameters give the plain loop's latents with SDXL, too."""
    each = wanted(**({"sag_scale": 0.75, "prompts_2": ("a ring",)} | start() | changes))
    assert_close(in_company(xl, each, company()), oracle.alone(xl.pipe, each))


@pytest.mark.parametrize("changes", [{}, *CHANGES[1::3]], ids=str)
def test_in_models_for_inpainting_it_is_the_loop(
    inpainting: Rounds, changes: dict[str, Any]
) -> None:
    """SAG gives the plain loop's latents with a model for inpainting."""
    each = wanted(**({"sag_scale": 0.75} | masked() | changes))
    others = [wanted(sag_scale=0.75, **masked(seed=9))]
    assert_close(in_company(inpainting, each, others), oracle.alone(inpainting.pipe, each))


def test_another_layer(plain: Rounds) -> None:
    """SAG reads the self-attention that `sag_layer` names."""
    given = plain.runner.model.pipeline.config._name_or_path
    listening = Rounds(spec(given).model_copy(update={"sag_layer": LAYER}))
    under_sd15_noise(listening.pipe)
    each = wanted(sag_scale=0.75)
    found = in_company(listening, each, company())
    assert_close(found, oracle.alone(plain.pipe, each, LAYER))
    assert float((found - oracle.alone(plain.pipe, each)).abs().max()) > 0.01


def test_a_window_saves_calls(plain: Rounds) -> None:
    """A step outside of `sag_start` and `sag_stop` is one UNet call."""
    result = plain.result(wanted(sag_scale=0.75, sag_start=0.25, sag_stop=0.5))
    calls: list[int] = []
    model = plain.runner.model
    hook = model.pipeline.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    again = plain.result(wanted(sag_scale=0.75, sag_start=0.25, sag_stop=0.5))
    hook.remove()
    assert len(calls) == 8 + 2
    assert torch.equal(latents_of(result), latents_of(again))


def test_a_blur_has_the_sigma_of_each_row() -> None:
    """Rows with several sigmas are blurred as each alone; the widest kernel is cut to the side."""
    latents = torch.randn(4, 4, 12, 9, generator=torch.Generator().manual_seed(0))
    sigmas = [1.0, 1.0, 0.4, 10.0]
    found = guidance.blur_rows(latents, sigmas)
    alone = [guidance.blur(latents[n : n + 1], sigma) for n, sigma in enumerate(sigmas)]
    assert torch.allclose(found, torch.cat(alone), rtol=0, atol=1e-6)
    assert torch.equal(guidance.blur_rows(latents, [1.0] * 4), guidance.blur(latents))


def test_defaults_are_the_contracts() -> None:
    """A job without these fields is that of a request without them."""
    names = (
        "sag_blur_sigma", "sag_mask_threshold", "sag_start", "sag_stop", "guidance_rescale",
        "prompts_2", "negative_prompts_2", "original_size", "crops_coords_top_left", "target_size",
    )  # fmt: skip
    request = GenerationRequest(prompt="x")
    assert {name: getattr(job(), name) for name in names} == {
        name: getattr(request, name) for name in names
    }
