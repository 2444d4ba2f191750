"""Checkpoints with a right digest and wrong entries are ignored, whatever is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.attempts import assert_same, checkpoints, new_batch, resumed, small
from tests.engine.checkpoint_cases import Case, assert_ignored
from worker.engine import checkpoint, safetensors_io

if TYPE_CHECKING:
    from tests.engine.jobs import Rounds


def forged(
    left: bytes, header: dict[str, Any] | None = None, **named: torch.Tensor | None
) -> bytes:
    """A file with a right digest and other entries; None removes one."""
    original, held = safetensors_io.unpack(left)
    for name, tensor in named.items():
        held.pop(name, None)
        if tensor is not None:
            held[name] = tensor
    return safetensors_io.pack(original | (header or {}), held)


LATENTS = torch.zeros(1, 4, 8, 8)
NAME = "0.scheduler.last_sample"


@pytest.mark.parametrize(
    ("header", "named", "why"),
    [
        ({"evaluations": None}, {}, "evaluations"),
        ({"evaluations": "22"}, {}, "evaluations"),
        ({"evaluations": [2]}, {}, "evaluations"),
        ({"evaluations": [2, 2, 2]}, {}, "evaluations"),
        ({"evaluations": [2, -1]}, {}, "evaluations"),
        ({"evaluations": [2, 5]}, {}, "evaluations"),
        ({"evaluations": [2, 10**30]}, {}, "evaluations"),
        ({"evaluations": [2, True]}, {}, "evaluations"),
        ({"evaluations": [2, 2.0]}, {}, "evaluations"),
        ({"evaluations": [2, [2]]}, {}, "evaluations"),
        ({"evaluations": [2, 1]}, {}, "unexpected tensors"),
        ({"evaluations": [0, 0]}, {}, "unexpected tensors"),
        ({}, {NAME: None}, "unexpected tensors"),
        ({}, {"0.generator": None}, "unexpected tensors"),
        ({}, {"2.latents": LATENTS}, "unexpected tensors"),
        ({}, {"0.scheduler.sigmas": LATENTS}, "unexpected tensors"),
        ({}, {"0.scheduler.step": LATENTS}, "unexpected tensors"),
        ({}, {"0.scheduler.__class__": LATENTS}, "unexpected tensors"),
        ({}, {"0.scheduler.model_outputs.2": LATENTS}, "unexpected tensors"),
        ({}, {"0.scheduler.model_outputs.-1": LATENTS}, "unexpected tensors"),
        ({}, {"0.latents": LATENTS.double()}, "its 0.latents is torch.float64"),
        ({}, {"0.latents": LATENTS[:, :3]}, "its 0.latents is torch.float32 (1, 3, 8, 8)"),
        ({}, {"1.latents": LATENTS[:0]}, "its 1.latents is torch.float32 (0, 4, 8, 8)"),
        ({}, {NAME: torch.tensor(1.0)}, f"its {NAME} is torch.float32 ()"),
        ({}, {NAME: LATENTS.to(torch.float8_e4m3fn)}, f"its {NAME} is torch.float8_e4m3fn"),
        ({}, {"1.generator": torch.zeros(5056, dtype=torch.uint8)}, "cannot be read"),
        ({}, {"1.generator": torch.full((5056,), 255, dtype=torch.uint8)}, "cannot be read"),
        ({}, {"1.generator": torch.zeros(8, dtype=torch.uint8)}, "its 1.generator is"),
    ],
)
def test_forged(
    case: Case,
    caplog: pytest.LogCaptureFixture,
    header: dict[str, Any],
    named: dict[str, torch.Tensor | None],
    why: str,
) -> None:
    """A file with a right digest gives a sampler no tensor that it would not have itself.

    The job's new images are not changed, however late the file is found to be wrong.
    """
    assert checkpoint.resume(forged(case.left, header, **named), case.fresh) == case.fresh
    assert why in caplog.records[-1].getMessage()
    for image in case.fresh:
        assert (image.evaluations, image.sampler.scheduler.step_index) == (0, None)


def test_found_out_late(rounds: Rounds, caplog: pytest.LogCaptureFixture) -> None:
    """A sampler that draws noise has drawn none after an unusable file was read."""
    wanted = small(num_inference_steps=3, scheduler="euler_a")
    whole, left = checkpoints(rounds, wanted)
    spoilt = forged(left[2], {}, **{"0.latents": LATENTS.double()})
    assert_ignored(rounds, wanted, spoilt, "its 0.latents is torch.float64", caplog)
    assert_same(resumed(new_batch(rounds), wanted, spoilt), whole)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
_TENSORS = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
    st.sampled_from([(), (0,), (1,), (5056,), (1, 4, 8, 8), (1, 4, 8, 9), (2, 4, 8, 8)]),
    st.sampled_from([torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool]),
    st.sampled_from([0.0, 1.0, 3e38, -1.0, float("nan"), float("inf")]),
)


RANDOM = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(RANDOM, max_examples=30, derandomize=True)
@given(data=st.data())
def test_forged_at_random(case: Case, data: st.DataObject) -> None:
    """A file with a right digest and anything else wrong is ignored, or its job comes to an end."""
    assert_harmless(case, data)


@pytest.mark.slow
@settings(RANDOM, max_examples=150)
@given(data=st.data())
def test_many_forged_at_random(case: Case, data: st.DataObject) -> None:
    """So are many, other ones in each run."""
    assert_harmless(case, data)


def assert_harmless(case: Case, data: st.DataObject) -> None:
    original, held = safetensors_io.unpack(case.left)
    names = st.sampled_from(
        [*sorted(held), "0.scheduler.timesteps", "0.scheduler.config", "9.latents", ""]
    )
    header = data.draw(
        st.dictionaries(
            st.sampled_from([*original]), _JSON | st.just([2, 2]) | st.just([1, 2]), max_size=1
        )
    )
    named = data.draw(st.dictionaries(names, st.none() | _TENSORS, max_size=2))
    again = checkpoint.resume(forged(case.left, header, **named), case.fresh)
    for image in again if again != case.fresh else ():
        while not image.is_done:
            image.step(LATENTS, image.unet_input())
        assert image.latents.shape == LATENTS.shape
