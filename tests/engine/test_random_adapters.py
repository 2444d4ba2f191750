"""Requests drawn at random, with LoRA by request: in company as the plain loop alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.engine import lora_files, oracle, random_requests
from tests.engine.cases import nightly, slow
from tests.engine.diffusers_alone import bare
from tests.engine.jobs import CLOSE, SPEC, apart, latents_of
from tests.engine.random_requests import NEAR_THRESHOLD, ROUNDINGS, under_sd15_noise
from tests.engine.served_adapters import FILES, Served


@pytest.fixture(scope="module")
def mild(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The bundled model under a noise schedule that magnifies no rounding."""
    made = Served(SPEC, tmp_path_factory.mktemp("mild"))
    under_sd15_noise(made.rounds.pipe)
    return made


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("number", "together"),
    [(0, 4), *slow((1, 25)), *nightly(*((n, 25) for n in range(2, 6)))],
)
def test_each_is_as_if_alone(mild: Served, number: int, together: int) -> None:
    """Requests drawn at random, of no to three adapters, are within 1e-4 of the loop alone.

    Or about as far as the loop moves when its UNet rounds otherwise, as in test_sweep.py.
    """
    dice = random.Random(number)
    wanted = []
    for _ in range(together):
        names = dice.sample([*FILES], dice.choice((0, 1, 1, 2, 3)))
        loras = tuple((name, dice.choice((-0.5, 0.3, 0.7, 1.0))) for name in names)
        wanted.append(replace(random_requests.draw(dice, brief=together < 25), loras=loras))
    futures = []
    for each in wanted:
        futures.append(mild.rounds.submit(each))
        for _ in range(dice.choice((0, 0, 1, 3))):
            mild.rounds.batch.step()
    mild.rounds.run()
    for each, future in zip(wanted, futures, strict=True):
        pipe = bare(SPEC.path)
        under_sd15_noise(pipe)
        for name, scale in each.loras:
            lora_files.merge(pipe, mild.weights[name], scale)
        alone = oracle.alone(pipe, each)
        difference = apart(latents_of(future.result(timeout=0)), alone)
        if difference > CLOSE * max(1.0, float(alone.abs().max())):
            crowds = (oracle.alone(oracle.crowded(pipe, rows), each) for rows in (2, 3))
            rounding = max(apart(crowd, alone) for crowd in crowds)
            near = oracle.threshold_margin(pipe, each) < max(NEAR_THRESHOLD, rounding)
            assert difference <= ROUNDINGS * rounding or near, (difference, rounding, each)
