"""Stable Diffusion 1.5's configuration with random weights, built without a download.

Speed and memory depend on shapes, not on what the weights say. The one thing that differs is the
vocabulary, which is the bundled tokenizer's: it is looked up, not multiplied with. Also the model
for inpainting, whose UNet has 9 channels. Stable Diffusion XL is in `benchmarks.sdxl`.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from worker.config.models import SHIPPED_MODEL

if TYPE_CHECKING:
    from pathlib import Path

#: Widths of the published model, each divided by the scale.
UNET_WIDTHS = (320, 640, 1280, 1280)
VAE_WIDTHS = (128, 256, 512, 512)
TEXT_WIDTH, TEXT_INNER_WIDTH, TEXT_TOKENS = 768, 3072, 77
#: Words of the published tokenizers.
VOCABULARY = 49_408
#: Channels are normalised in this many groups, fewer where the scaled widths don't divide.
GROUPS = 32
#: Channels of latents, and of the inputs for inpainting: latents, mask and masked picture.
LATENT_CHANNELS, INPAINTING_CHANNELS = 4, 9


def build(folder: Path, scale: int, dtype: torch.dtype, *, inpainting: bool = False) -> None:
    """Save the model into `folder`, or that for inpainting; the same weights each time.

    `scale` divides the widths, for a smoke test.
    """
    torch.manual_seed(0)
    made = pipeline(scale, inpainting=inpainting)
    if inpainting:  # as published
        made = StableDiffusionInpaintPipeline(**made.components, requires_safety_checker=False)
    made.to(dtype=dtype)
    made.save_pretrained(folder)


def pipeline(scale: int = 1, *, inpainting: bool = False, vocabulary: int | None = None) -> Any:  # noqa: ANN401  # diffusers has no types
    """The model with random weights on torch's default device, in float32.

    `vocabulary` is the bundled tokenizer's unless given.
    """
    words = tokenizer()
    own = {"vocab_size": vocabulary or len(words)}
    return StableDiffusionPipeline(
        vae=autoencoder(scale, sample_size=512, scaling_factor=0.18215),
        text_encoder=CLIPTextModel(text_config(scale, words, **own)),
        tokenizer=words,
        unet=_unet(scale, INPAINTING_CHANNELS if inpainting else LATENT_CHANNELS),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tokenizer() -> Any:  # noqa: ANN401  # transformers is not typed here
    """The bundled model's, for texts of the usual length."""
    made = CLIPTokenizer.from_pretrained(SHIPPED_MODEL / "tokenizer")
    made.model_max_length = TEXT_TOKENS
    return made


def autoencoder(scale: int, **options: Any) -> Any:  # noqa: ANN401  # diffusers has no types
    """The autoencoder of both families; `options` of its configuration beside the widths."""
    widths = divided(VAE_WIDTHS, scale)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=2,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=gcd(GROUPS, *widths),
        **options,
    )


def text_config(scale: int, words: Any, **changes: Any) -> Any:  # noqa: ANN401  # transformers is not typed here
    """The text half of CLIP ViT-L/14, with `changes`; both families have it."""
    given: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": TEXT_WIDTH // scale,
        "intermediate_size": TEXT_INNER_WIDTH // scale,
        "projection_dim": TEXT_WIDTH // scale,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": TEXT_TOKENS,
        "hidden_act": "quick_gelu",
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    return CLIPTextConfig(**(given | changes))


def divided(widths: tuple[int, ...], scale: int) -> tuple[int, ...]:
    """Widths of a small model; ends the program where they can't be divided."""
    if any(width % scale for width in (*widths, TEXT_WIDTH)) or (TEXT_WIDTH // scale) % 12:
        message = f"--scale {scale}: the widths can't be divided; 2, 4 and 8 work"
        raise SystemExit(message)
    return tuple(width // scale for width in widths)


def _unet(scale: int, channels: int) -> Any:  # noqa: ANN401  # diffusers has no types
    widths = divided(UNET_WIDTHS, scale)
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=channels,
        block_out_channels=widths,
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH // scale,
        attention_head_dim=8,
        norm_num_groups=gcd(GROUPS, *widths),
    )


def _scheduler() -> Any:  # noqa: ANN401  # diffusers has no types
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
