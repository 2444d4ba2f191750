"""UNets that predict v or the sample: the same pictures as one that predicts epsilon."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine import oracle
from tests.engine.cases import nightly, rotated, slow
from tests.engine.jobs import Rounds, apart, job, latents_of
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.loaded_model import LoadedModel

#: Bound in parts of the largest latent, at 4 steps. The plain loop differs from itself, with rows
#: computed once against two and three times in a call (`oracle.crowded`), by up to 6.4e-5
#: (dpmpp_2m_sde, Intel Xeon); writing epsilon as v and back adds as many roundings again. 1e-4 was
#: the most seen (kdpm2_a).
NEAR = 3e-4
#: By timestep, by sigma, twice a step, between timesteps, and PNDM.
BY_DAY = ("ddim", "dpmpp_2m", "heun", "ipndm", "pndm")
PREDICTIONS = ("v_prediction", "sample")


def others() -> list[Any]:
    """The other samplers: one prediction type each in `test-all`, both by night."""
    names = [name for name in sorted(oracle.SCHEDULERS) if name not in BY_DAY]
    pairs = [(name, PREDICTIONS[index % 2]) for index, name in enumerate(names)]
    rest = [(name, PREDICTIONS[1 - index % 2]) for index, name in enumerate(names)]
    return slow(*pairs) + nightly(*rest)


@pytest.mark.parametrize(("name", "kind"), rotated(BY_DAY, PREDICTIONS, slow) + others())
def test_the_prediction_type_changes_nothing(rounds: Rounds, name: str, kind: str) -> None:
    """The same UNet, written as v or as sample, gives the same latents, also in shared calls.

    The oracle is the plain loop on the UNet as it is. diffusers' PNDM extrapolates the output
    itself, so there the loop gets the UNet as it is written.
    """
    wanted = job(num_inference_steps=4, scheduler=name)
    written = oracle.wrapped(rounds.pipe, kind, like=wanted)
    company = Rounds(model=LoadedModel(StableDiffusion(), written, "cpu", "none"), max_batch_rows=8)
    future = company.submit(wanted)
    company.batch.step()
    company.submit(job(num_inference_steps=2, scheduler=name, seeds=(8,), guidance_scale=1.0))
    company.run()
    expected = oracle.alone(written if name == "pndm" else rounds.pipe, wanted)
    difference = apart(latents_of(future.result(timeout=0)), expected)
    assert difference <= NEAR * max(1.0, float(expected.abs().max()))
