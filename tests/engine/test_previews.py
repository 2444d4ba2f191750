"""Previews of a job's steps: with which they come, and what they show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tests.engine.cases import slow
from tests.engine.jobs import Make, Rounds, job, latents_of
from tests.engine.preview_pictures import PROMPTS, error, picture, pixels
from worker.engine import previews
from worker.engine.previews import SIDE_PX, PreviewMap
from worker.job_control import Control, Step

if TYPE_CHECKING:
    from worker.engine.job import JobResult


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
