"""`auto` on a processor that multiplies bfloat16 in hardware: the UNet alone is in bfloat16."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import torch

from tests.engine.attempts import assert_same, checkpoints, new_batch, resumed, small
from tests.engine.jobs import SPEC, Rounds, apart, job, latents_of
from worker import devices
from worker.engine.loading import model_loader

if TYPE_CHECKING:
    from pathlib import Path

AUTO = SPEC.model_copy(update={"dtype": "auto"})


@pytest.fixture(scope="module")
def mixed() -> Rounds:
    """The bundled model as a processor with fast bfloat16 loads it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "has_fast_bfloat16", lambda: True)
        return Rounds(model=model_loader.load(AUTO, "cpu", "none"))


@pytest.mark.parametrize(
    ("fast", "dtype", "unet"),
    [
        (True, "auto", torch.bfloat16),
        (False, "auto", torch.float32),
        (True, "float32", torch.float32),
    ],
)
def test_the_processor_decides_for_the_unet(
    monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: str, unet: torch.dtype
) -> None:
    """The processor or the settings choose the UNet's dtype; other networks stay in float32."""
    monkeypatch.setattr(devices, "has_fast_bfloat16", lambda: fast)
    spec = SPEC.model_copy(update={"dtype": dtype})
    pipe = model_loader.load(spec, "cpu", "none").pipeline
    assert (pipe.unet.dtype, pipe.text_encoder.dtype, pipe.vae.dtype) == (
        unet, torch.float32, torch.float32,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("flags\t\t: fpu avx512_bf16", False),
        ("Features\t: bf16", False),
        (None, False),
    ],
)
def test_what_counts_is_amx(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str | None, expected: bool
) -> None:
    """Only AMX counts as fast bfloat16; AVX-512 and Arm gain nothing or were not measured."""
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"processor\t: 0\n{flags}\nbogomips\t: 1\n")
    monkeypatch.setattr(devices, "_CPU_FILE", file)
    assert devices.has_fast_bfloat16() is expected


def test_only_the_unet_rounds(mixed: Rounds, rounds: Rounds) -> None:
    """Latents stay in float32, within a twentieth of those of float32; the result says it.

    A bfloat16 has eight bits: a UNet call is off by about 1 %, which 6 steps of guidance magnify.
    Without SAG, whose mask is a threshold: a cell that rounding moves across it changes wholly.
    """
    wanted = job(num_inference_steps=6, sag_scale=0.0)
    half, full = mixed.result(wanted), rounds.result(wanted)
    assert (half.dtype, full.dtype) == ("bfloat16", "float32")
    assert latents_of(half).dtype == torch.float32
    difference = apart(latents_of(half), latents_of(full)) / float(latents_of(full).abs().max())
    assert 0 < difference < 0.05


def test_a_checkpoint_of_the_same_precision(mixed: Rounds) -> None:
    """A job resumes with the same bits from a checkpoint of the same precision."""
    wanted = small()
    whole, left = checkpoints(mixed, wanted)
    again = resumed(new_batch(mixed), wanted, left[3])
    assert again.resumed_from_step == 3
    assert_same(again, whole)


@pytest.mark.parametrize("saved_in_half", [True, False])
def test_a_checkpoint_of_another_precision(
    mixed: Rounds, rounds: Rounds, caplog: pytest.LogCaptureFixture, saved_in_half: bool
) -> None:
    """A checkpoint of another precision is ignored with a warning, and the job starts anew."""
    caplog.set_level(logging.WARNING)
    saving, loading = (mixed, rounds) if saved_in_half else (rounds, mixed)
    wanted = small()
    _, left = checkpoints(saving, wanted)
    again = resumed(new_batch(loading), wanted, left[3])
    assert again.resumed_from_step is None
    assert_same(again, new_batch(loading).result(wanted))
    assert "UNet in torch.bfloat16" in caplog.text
