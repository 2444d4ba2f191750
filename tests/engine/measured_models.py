"""Models whose calls and decodes take what a test says, on a clock of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

from worker.engine.device import warmup
from worker.engine.device.warmup import capacity
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.loaded_model import LoadedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.engine.device.capacity import Capacity
    from worker.engine.families.conditioning import Conditioning

PURE = settings(deadline=None, derandomize=True, max_examples=150)


def pipe(sample_size: Any = 64) -> Any:
    """The parts of a pipeline that are measured: its sizes."""
    config = SimpleNamespace(sample_size=sample_size, in_channels=4, cross_attention_dim=8)
    return SimpleNamespace(
        unet=SimpleNamespace(config=config, dtype=torch.float32),
        text_encoder=SimpleNamespace(config=SimpleNamespace(hidden_size=8)),
        tokenizer=SimpleNamespace(model_max_length=7),
    )


def decoding(device: str, decode: Callable[..., Any]) -> LoadedModel:
    """A model of latents of 6 x 6 whose autoencoder decodes by `decode`."""
    made = pipe(6)
    config = SimpleNamespace(latent_channels=4)
    made.vae = SimpleNamespace(config=config, dtype=torch.float32, decode=decode)
    return LoadedModel(StableDiffusion(), made, device, "none")


@dataclass
class TimedUnet:
    """A UNet whose calls take a given time, on a clock of its own."""

    #: Seconds of a call of so many rows.
    seconds: Callable[[int], float]
    #: Rows beyond which the memory is full.
    holds: int = 1000
    #: How much longer the first call of a size takes.
    first_s: float = 0.0
    now_s: float = 0.0
    calls: list[int] = field(default_factory=list)
    inputs: list[tuple[torch.Tensor, Sequence[float], Conditioning]] = field(default_factory=list)

    def __call__(
        self, noisy: torch.Tensor, timesteps: Sequence[float], conditioning: Conditioning
    ) -> None:
        """One call, as the runner makes it."""
        rows = len(timesteps)
        self.now_s += self.seconds(rows) + (rows not in self.calls) * self.first_s
        self.calls.append(rows)
        self.inputs.append((noisy, timesteps, conditioning))
        if rows > self.holds:
            raise torch.OutOfMemoryError

    def measured(self, max_rows: int | None = None, sample_size: Any = 4) -> Capacity:
        """The capacity that is found, by this network's clock."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(warmup, "time", SimpleNamespace(perf_counter=lambda: self.now_s))
            model = LoadedModel(StableDiffusion(), pipe(sample_size), "cpu", "none")
            return capacity(model, self, max_rows)
