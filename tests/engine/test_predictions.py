"""Networks that predict v or the sample, in the engine: the pictures of one that says epsilon."""

from __future__ import annotations

import pytest

from tests.engine import oracle
from tests.engine.jobs import Rounds, apart, job, latents_of
from worker.engine.model_loader import LoadedModel

#: Of the largest latent; the worst seen was 1e-4 (`kdpm2_a`), by rounding.
NEAR = 3e-4


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", sorted(oracle.SCHEDULERS))
def test_the_kind_of_prediction_changes_nothing(rounds: Rounds, name: str, kind: str) -> None:
    """The same network, told as v or as the sample, gives the same latents, in company too.

    The oracle is the plain loop on the network as it is. diffusers' PNDM extrapolates the raw
    output, so there the loop gets the network as it is told.
    """
    wanted = job(num_inference_steps=4, scheduler=name)
    told = oracle.wrapped(rounds.pipe, kind, like=wanted)
    company = Rounds(model=LoadedModel(told, "cpu", "none"), max_batch_rows=8)
    future = company.submit(wanted)
    company.batch.step()
    company.submit(job(num_inference_steps=2, scheduler=name, seeds=(8,), guidance_scale=1.0))
    company.run()
    expected = oracle.alone(told if name == "pndm" else rounds.pipe, wanted)
    difference = apart(latents_of(future.result(timeout=0)), expected)
    assert difference <= NEAR * max(1.0, float(expected.abs().max()))
