"""The engine's own rounds pass the dry run: all families, pictures, masks, SAG's parameters."""

from __future__ import annotations

from unittest import mock

import pytest

from benchmarks.cuda_dry_run import dry_run, models, scenes, variants
from tests.engine.cases import nightly, slow
from tests.engine.dry_runs import found_in, found_with
from worker.engine import previews


@pytest.fixture(scope="module", autouse=True)
def first_use() -> None:
    """Use both families once, outside of the tests' times: imports, and shapes that torch keeps."""
    found_in(9, "small-sdxl", height=96, width=64)
    found_in(9, **variants.picture(0, (64, 64), mask=True), output_type="latent")


def test_stable_diffusion_xl() -> None:
    """A task with both guidances passes, from its two text encoders to a decode in float32."""
    assert found_in(9, "small-sdxl", height=96, width=64) == []


def test_a_model_of_pixels() -> None:
    """A task of a class passes, with both guidances and the variance that the UNet has learned."""
    for scheduler in ("ddpm", "ddim"):
        subject = {"prompts": (), "class_labels": (3,), "num_inference_steps": 2}
        job = scenes.job(0, scheduler, **subject, checkpoint_every=1)
        assert found_with([scenes.Arrival(0, job)], "small-adm") == []


@pytest.mark.parametrize("mask", [False, True])
def test_a_picture_to_start_from(mask: bool) -> None:
    """A task that starts from a picture passes; with a mask, also what is put back each step."""
    start = variants.picture(0, (64, 64), mask=mask) | {"num_inference_steps": 2}
    assert found_in(9, **start, output_type="latent") == []


def test_a_model_for_inpainting() -> None:
    """Mask and masked picture are on the device in both passes of a task."""
    start = variants.picture(1, (64, 64), mask=True)
    assert found_in(9, "bundled-inpainting", **start, output_type="latent") == []


def test_parameters_of_sag_in_one_call() -> None:
    """Tasks of different blurs, thresholds and rescales share their calls without a fault."""
    assert found_with(scenes.steady(("ddim",), 2, 1, variants.sag_parameters)) == []


def test_a_checkpoint_of_a_picture() -> None:
    """A task with a picture and a mask is saved, and resumed, without a fault."""
    changes = variants.picture(0, (64, 64), mask=True) | {"checkpoint_every": 1}
    arrival = scenes.Arrival(0, scenes.job(0, "euler", num_inference_steps=3, **changes))
    with mock.patch.object(previews, "fit"), dry_run.engine_on_fake_cuda() as fake:
        rounds = scenes.Rounds(lambda: models.load("bundled"), 8)
        rounds.run([arrival])
        again = scenes.resumed([arrival], rounds.checkpoints)
        assert len(again) == 1
        rounds.run(again)
    assert [*map(str, fake.faults), *rounds.errors()] == []
    assert [each.result(0).resumed_from_step for each in rounds.futures.values()] == [None, 1]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [*slow("bundled", "bundled-inpainting", "small-adm"), *nightly("small-sdxl")], ids=str
)
def test_all_samplers(name: str) -> None:
    """Every sampler passes in mixed rounds, and when its job resumes from a checkpoint."""
    with dry_run.engine_on_fake_cuda() as fake:
        rounds = scenes.Rounds(lambda: models.load(name), 64, models.MODELS[name].subject)
        dry_run.every_sampler(rounds, models.MODELS[name], steps=4)
    assert [*map(str, fake.faults), *rounds.errors()] == []
    kinds = {tally.kind for tally in fake.tallies}
    # A model for inpainting starts from a picture only, which not all samplers do.
    inpainting, names = models.MODELS[name].inpainting, set(models.MODELS[name].samplers)
    names -= {"ipndm"} if inpainting else set()
    assert {f"step, {each}" for each in names} <= kinds
    assert {f"resume, {each}" for each in names} <= kinds
