"""The autoencoder: 64 px pictures to 4 x 16 x 16 latents and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import AutoencoderKL

from training.progress import SAVE_EVERY, Stage, cosine_rate

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

STEPS = 4_000
BATCH = 16
PEAK_RATE = 1.5e-3
KL_WEIGHT = 1e-5


def build() -> AutoencoderKL:
    """An untrained autoencoder: factor 4, channels 16-32-64, 0.7 M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=64,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
    )


def as_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float (n, 3, h, w) in -1 … 1."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train(pixels: NDArray[np.uint8], work: Path, seed: int) -> AutoencoderKL:
    """Train, or go on from the checkpoint in `work`; L1 + L2 + a little KL."""
    torch.manual_seed(seed)
    stage = Stage("vae", work)
    model = build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_RATE, weight_decay=1e-4)
    start = 0
    if state := stage.resume():
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    for step in range(start, STEPS):
        rng = np.random.default_rng((seed, step))
        optimizer.param_groups[0]["lr"] = cosine_rate(step, STEPS, PEAK_RATE)
        batch = as_tensor(pixels[np.sort(rng.integers(0, len(pixels), BATCH))])
        posterior = model.encode(batch).latent_dist
        generator = torch.Generator().manual_seed(step)
        error = model.decode(posterior.sample(generator)).sample - batch
        reconstruction = error.abs().mean() + error.square().mean()
        loss = reconstruction + KL_WEIGHT * posterior.kl().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        stage.log(step + 1, reconstruction=reconstruction.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == STEPS:
            stage.save(step + 1, model=model.state_dict(), optimizer=optimizer.state_dict())
    return model.eval()


@torch.no_grad()
def encode_all(model: AutoencoderKL, pixels: NDArray[np.uint8]) -> torch.Tensor:
    """The latents' means of all pictures, (n, 4, 16, 16), scaled to unit standard deviation.

    Sets `scaling_factor` in the model's configuration, which the pipeline divides by.
    """
    means = [
        model.encode(as_tensor(pixels[start : start + 64])).latent_dist.mean
        for start in range(0, len(pixels), 64)
    ]
    latents = torch.cat(means)
    scale = 1.0 / latents.std().item()
    model.register_to_config(scaling_factor=round(scale, 5))
    scaled: torch.Tensor = latents * model.config.scaling_factor
    return scaled
