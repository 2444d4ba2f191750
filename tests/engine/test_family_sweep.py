"""Requests drawn at random over four models in one batch: each equal to the same request alone.

All families, a checkpoint in one file, a model for inpainting, adapters by request, all samplers,
pictures, masks, classes, SAG's parameters.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine import oracle
from tests.engine.cases import nightly, slow
from tests.engine.jobs import CLOSE, apart, job, latents_of
from tests.engine.pictures import masked, picture
from tests.engine.random_requests import NEAR_THRESHOLD, ROUNDINGS
from tests.engine.swept_models import LORAS, Company, models_in
from tests.engine.test_families import SAMPLERS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from tests.engine.swept_models import Swept
    from worker.engine.jobs.job import Job

#: Requests of one batch; sixteen batches by night are 400 requests.
TOGETHER, BATCHES = 25, 16
#: Share of the requests whose rounding may be magnified above `CLOSE`, as in test_sweep.py.
FAR = 8 / 25


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Swept]:
    """One model of each kind."""
    return models_in(tmp_path_factory.mktemp("swept"))


def draw(dice: random.Random, *, brief: bool) -> Job:
    """One request of any model and any feature; its steps are fewer where it is `brief`."""
    model = dice.choice(("plain", "xl", "inpainting", "pixels"))
    if model == "pixels":
        return _of_pixels(dice, brief=brief)
    sides = dice.choice((32, 40, 48, 64)), dice.choice((32, 48, 64))
    start = masked if model == "inpainting" else dice.choice((None, None, picture, masked))
    scheduler = dice.choice(SAMPLERS if start else sorted(oracle.SCHEDULERS))
    begin = dice.choice((0.0, 0.0, 0.25))
    changes: dict[str, Any] = {
        "model": model,
        "height": sides[0],
        "width": sides[1],
        "num_inference_steps": dice.randint(4, 5 if brief else 9),
        "guidance_scale": dice.choice((1.0, 2.0, 3.0, 7.5)),
        "sag_scale": dice.choice((0.0, 0.5, 0.75, 1.0)),
        "eta": dice.choice((0.0, 0.7)) if scheduler in ("ddim", "tcd") else 0.0,
        "seeds": (dice.randrange(2**32),),
        "scheduler": scheduler,
        "negative_prompts": dice.choice(((), ("a blue ring",))),
        "sag_blur_sigma": dice.choice((1.0, 1.0, 0.5, 3.0)),
        "sag_mask_threshold": dice.choice((1.0, 1.0, 0.7, 1.4)),
        "sag_start": begin,
        "sag_stop": dice.choice((1.0, 1.0, begin + 0.5)),
        "guidance_rescale": dice.choice((0.0, 0.0, 0.7)),
    }
    if start is not None:
        changes |= start(*sides, seed=dice.randrange(100))
        changes["strength"] = dice.choice((0.4, 0.8, 1.0))
    if model in {"plain", "xl"}:
        changes["loras"] = dice.choice(LORAS)
    if model == "xl":
        changes |= dice.choice(({}, {"prompts_2": ("a ring",)}, {"original_size": (300, 200)}))
    return job(**changes)


def _of_pixels(dice: random.Random, *, brief: bool) -> Job:
    """One request of the pixel-space model, with a class or with none."""
    labels = dice.choice(((), (0,), (3,), (1, 4)))
    scheduler = dice.choice(sorted(oracle.SCHEDULERS))
    begin = dice.choice((0.0, 0.0, 0.25))
    return job(
        model="pixels",
        prompts=(),
        class_labels=labels,
        height=dice.choice((None, 16, 24)),
        width=dice.choice((None, 16, 32)),
        num_inference_steps=dice.randint(4, 5 if brief else 9),
        guidance_scale=dice.choice((1.0, 2.0, 4.0)) if labels else 1.0,
        sag_scale=dice.choice((0.0, 0.5, 1.0)),
        eta=dice.choice((0.0, 0.7)) if scheduler in ("ddim", "tcd") else 0.0,
        seeds=(dice.randrange(2**32),),
        scheduler=scheduler,
        sag_blur_sigma=dice.choice((1.0, 3.0, 9.0)),
        sag_mask_threshold=dice.choice((1.0, 0.7)),
        sag_start=begin,
        sag_stop=dice.choice((1.0, begin + 0.5)),
        guidance_rescale=dice.choice((0.0, 0.7)) if labels else 0.0,
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("number", "together"),
    [
        *((n, 3) for n in range(4)),
        *slow((0, TOGETHER), (1, TOGETHER)),
        *nightly(*((n, TOGETHER) for n in range(2, BATCHES))),
    ],
)
def test_each_is_as_if_alone(models: Mapping[str, Swept], number: int, together: int) -> None:
    """Each job of a batch of several models is within 1e-4 of the plain loop of that job alone.

    Or about as far as the loop itself moves when its UNet rounds otherwise, or where a column sum
    is so near to the threshold that rounding decides.
    """
    dice = random.Random(number)
    company = Company(models, dice.choice((6, 16, 40)))
    wanted = [draw(dice, brief=together < TOGETHER) for _ in range(together)]
    futures: list[Future[Any]] = []
    for each in wanted:
        futures.append(company.submit(each))
        for _ in range(dice.choice((0, 0, 1, 3, 8))):
            company.batch.step()
    company.run()
    far = 0
    for each, future in zip(wanted, futures, strict=True):
        pipe, alone = models[each.model].pipe(each), models[each.model].alone(each)
        difference = apart(latents_of(future.result(timeout=0)), alone)
        if difference > CLOSE:
            far += 1
            crowds = (oracle.alone(oracle.crowded(pipe, rows), each) for rows in (2, 3))
            rounding = max(apart(crowd, alone) for crowd in crowds)
            margin = oracle.threshold_margin(pipe, each)
            near = margin < max(NEAR_THRESHOLD, rounding)
            shown = replace(each, image=None, mask_image=None)  # megabytes of pixels
            assert difference <= ROUNDINGS * rounding or near, (difference, margin, rounding, shown)
    assert far <= max(1, FAR * together)
