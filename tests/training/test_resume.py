"""A training that was killed and resumed gives the weights of one that was not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from training import denoiser, progress, record
from training import tokenizer as bpe
from training.progress import Stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CAPTIONS = ["a red star on a blue background", "a green ring on a pink background"]


class KilledError(Exception):
    """Stands for the end of the process."""


@dataclass(frozen=True)
class Killed(denoiser.Batches):
    """Batches whose third draw ends the training."""

    def draw(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Raise at step 3."""
        if step == 3:
            raise KilledError
        return super().draw(step)


def small_unet(**config: Any) -> Any:
    """The UNet of the training with a quarter of its channels."""
    return UNet2DConditionModel(**config | {"block_out_channels": (16, 32), "norm_num_groups": 8})


@pytest.mark.parametrize(
    "unet",
    [
        pytest.param(small_unet, marks=pytest.mark.slow),
        pytest.param(UNet2DConditionModel, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_training_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unet: Callable[..., Any]
) -> None:
    """A training that was killed after a checkpoint and resumed ends with the same weights."""
    monkeypatch.setattr(denoiser, "UNet2DConditionModel", unet)
    monkeypatch.setattr(denoiser, "STEPS", 4)
    monkeypatch.setattr(denoiser, "BATCH", 2)
    monkeypatch.setattr(denoiser, "SAVE_EVERY", 2)
    monkeypatch.setattr(progress, "LOG_EVERY", 1)
    words = bpe.train(CAPTIONS)
    latents = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    parts = latents, denoiser.tokens(words, CAPTIONS), denoiser.tokens(words, [""]), 0
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = denoiser.train(denoiser.Batches(*parts), words, tmp_path / "whole", compiled=False)
    with pytest.raises(KilledError):
        denoiser.train(Killed(*parts), words, tmp_path / "killed", compiled=False)
    resumed = denoiser.train(denoiser.Batches(*parts), words, tmp_path / "killed", compiled=False)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    assert [row["step"] for row in Stage("denoiser", tmp_path / "killed").rows()] == [1, 2, 3, 4]


def test_a_work_folder_has_one_seed(tmp_path: Path) -> None:
    """A second seed in the same folder is an error, as its checkpoints are of the first."""
    assert record.begin(tmp_path, 0) == record.begin(tmp_path, 0)
    with pytest.raises(ValueError, match="seed 0"):
        record.begin(tmp_path, 1)
