"""Conversion of an output from one prediction type to another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.guidance_inputs import (
    PREDICTIONS,
    PURE,
    ROUNDING64,
    SEEDS,
    SIDES,
    levels,
    output_for,
    tensors,
)
from worker.engine import guidance


@PURE
@given(seed=SEEDS, size=SIDES, alpha=st.floats(0.01, 0.9999))
def test_a_conversion_keeps_the_x0(seed: int, size: tuple[int, int], alpha: float) -> None:
    """A converted output stands for the same x0; one that needs no conversion is returned as is.

    Epsilon divides by sigma, and v from epsilon by alpha.
    """
    _, (noisy, x0, _) = tensors(seed, 1, size)
    at = levels(alpha)
    rounding = ROUNDING64 / float(at[1])
    outputs = {kind: output_for(kind, x0, noisy, *at) for kind in PREDICTIONS}
    for kind, output in outputs.items():
        x0_scaled = guidance.scaled_x0(kind, noisy, output, *at)
        assert torch.allclose(x0_scaled, at[0] * x0, rtol=0, atol=rounding)
        assert guidance.convert(output, noisy, alpha, float(at[1]), (kind, kind)) is output
        converted = guidance.convert(output, noisy, alpha, float(at[1]), (kind, "v_prediction"))
        assert torch.allclose(converted, outputs["v_prediction"], rtol=0, atol=rounding / alpha)


@pytest.mark.parametrize("kinds", [("v_prediction", "epsilon"), ("flow_prediction", "sample")])
def test_a_conversion_that_is_not_known_is_an_error(kinds: tuple[str, str]) -> None:
    """A conversion that is not implemented is an error."""
    one = torch.ones(1, 4, 5, 5)
    with pytest.raises(ValueError, match=kinds[0]):
        guidance.convert(one, one, 0.6, 0.8, kinds)


def test_a_prediction_type_that_is_not_known_is_an_error() -> None:
    """A prediction type that is not implemented is an error."""
    one, level = torch.ones(1, 4, 5, 5), torch.full((1, 1, 1, 1), 0.5**0.5)
    with pytest.raises(ValueError, match="flow_prediction"):
        guidance.scaled_x0("flow_prediction", one, one, level, level)
    with pytest.raises(ValueError, match="flow_prediction"):
        guidance.degrade("flow_prediction", one, one, one[:, :1], level, level)
