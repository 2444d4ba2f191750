"""The UNet and the text encoder, trained together to predict the noise in a latent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextConfig, CLIPTextModel

from training.progress import SAVE_EVERY, Stage, cosine_rate
from training.tokenizer import LENGTH

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import CLIPTokenizer

STEPS = 22_000
BATCH = 32
PEAK_RATE = 1e-3
#: Share of captions replaced by the empty one, for classifier-free guidance.
DROPPED = 0.1
#: Ceiling of the signal-to-noise weight (Hang et al. 2023, arXiv 2303.09556).
MIN_SNR_GAMMA = 5.0
#: The steps where the noise outweighs the picture decide what goes where, and their error in
#: epsilon is small: below this signal-to-noise ratio they count more, up to so many times.
EMPHASIS_BELOW_SNR, EMPHASIS_MOST = 1.5, 8.0
#: Shapes are told apart in the middle of the schedule: a share of the timesteps is drawn evenly,
#: the rest as 1000 * sigmoid(normal of this deviation), as Esser et al. 2024 do (arXiv 2403.03206).
EVEN_SHARE, MIDDLE_DEVIATION = 0.25, 0.8
EMA_DECAY = 0.999
#: For the card: the shipped weights came to this recipe by a detour.
HISTORY = (
    "The recipe was found on the way, so a run from nothing is not the one that made these "
    "weights. Up to step 4,500 no timestep counted more than its signal-to-noise weight; up to "
    "9,000 timesteps were drawn evenly, in float32, and the rate came down to its end. Then the "
    "rate was raised to where the cosine over all steps has it, and the recipe was the one in "
    "`training/denoiser.py`."
)
TEXT_WIDTH = 128


def noise_schedule() -> DDIMScheduler:
    """Stable Diffusion's schedule, but noisier at its end.

    With Stable Diffusion's `beta_end` of 0.012 the last step still holds 6.9 % of the picture's
    mean colour, as much as the mean of the noise over 256 cells (1 / 16): the network learns to
    read the background there, and a sampler that starts from pure noise misleads it. With 0.02
    it is 1.6 %.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


class Denoiser(nn.Module):
    """UNet and text encoder as one module: token ids and noisy latents in, noise out."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=4 * TEXT_WIDTH,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=LENGTH,
                projection_dim=TEXT_WIDTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(64, 128),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=4,
            norm_num_groups=16,
        )

    def forward(
        self, latents: torch.Tensor, timesteps: torch.Tensor, token_ids: torch.Tensor
    ) -> torch.Tensor:
        """Noise of shape (n, 4, 16, 16) for `timesteps` (n,) and `token_ids` (n, LENGTH)."""
        text = self.text_encoder(token_ids).last_hidden_state
        noise: torch.Tensor = self.unet(latents, timesteps, encoder_hidden_states=text).sample
        return noise


@dataclass(frozen=True)
class Batches:
    """All latents and token ids, from which a step's batch is drawn by its number alone."""

    latents: torch.Tensor
    token_ids: torch.Tensor
    empty_ids: torch.Tensor
    seed: int

    def draw(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, noise, timesteps and token ids of one step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        rows = torch.randint(len(self.latents), (BATCH,), generator=generator)
        latents = self.latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        even = torch.rand(BATCH, generator=generator)
        middle = torch.sigmoid(torch.randn(BATCH, generator=generator) * MIDDLE_DEVIATION)
        evenly = torch.rand(BATCH, generator=generator) < EVEN_SHARE
        timesteps = (torch.where(evenly, even, middle) * 1000).long().clamp(max=999)
        dropped = torch.rand(BATCH, generator=generator) < DROPPED
        token_ids = torch.where(dropped[:, None], self.empty_ids, self.token_ids[rows])
        return latents, noise, timesteps, token_ids


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids of shape (len(captions), LENGTH), padded as the pipeline pads them."""
    batch = tokenizer(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="np"
    )
    return torch.from_numpy(np.asarray(batch.input_ids))


def loss_weights(schedule: DDIMScheduler) -> torch.Tensor:
    """The weight of each timestep's error, (1000,)."""
    ratio = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    plain = (MIN_SNR_GAMMA / ratio).clamp(max=1.0)
    weights: torch.Tensor = plain * (EMPHASIS_BELOW_SNR / ratio).clamp(1.0, EMPHASIS_MOST)
    return weights


def train(batches: Batches, tokenizer: CLIPTokenizer, work: Path, *, compiled: bool) -> Denoiser:
    """Train, or go on from the checkpoint in `work`; gives the averaged weights."""
    torch.manual_seed(batches.seed)
    stage = Stage("denoiser", work)
    model = Denoiser(tokenizer)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    averaging = get_ema_multi_avg_fn(EMA_DECAY)
    average = AveragedModel(model, multi_avg_fn=averaging)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_RATE, weight_decay=1e-2)
    start = 0
    if state := stage.resume():
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    if compiled:
        model.compile()
    schedule = noise_schedule()
    weights = loss_weights(schedule)
    for step in range(start, STEPS):
        optimizer.param_groups[0]["lr"] = cosine_rate(step, STEPS, PEAK_RATE)
        latents, noise, timesteps, token_ids = batches.draw(step)
        noisy = schedule.add_noise(latents, noise, timesteps).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):  # 0.36 s a step instead of 0.48
            predicted = model(noisy, timesteps, token_ids)
        error = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        loss = (weights[timesteps] * error).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        stage.log(step + 1, noise=error.mean().item(), weighted=loss.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == STEPS:
            stage.save(
                step + 1,
                model=model.state_dict(),
                average=average.state_dict(),
                optimizer=optimizer.state_dict(),
            )
    averaged = average.module
    assert isinstance(averaged, Denoiser)
    return averaged.eval()
