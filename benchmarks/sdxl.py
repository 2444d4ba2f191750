"""Stable Diffusion XL's base configuration with random weights, built without a download.

As `benchmarks.sd15`, whose autoencoder and first text encoder it shares.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from benchmarks import sd15

if TYPE_CHECKING:
    from pathlib import Path

#: Widths of the published model, each divided by the scale; a head is 64 wide there.
UNET_WIDTHS, HEADS = (320, 640, 1280), (5, 10, 20)
#: Layers of the transformers of the second and of the third block, which the mid block has, too.
TRANSFORMER_LAYERS = (1, 2, 10)
#: OpenCLIP ViT-bigG/14's text half.
TEXT_WIDTH_2, TEXT_INNER_WIDTH_2, TEXT_HEADS_2, TEXT_LAYERS_2 = 1280, 5120, 20, 32
#: Width of the embedding of each of the six sizes.
SIZE_WIDTH, SIZES = 256, 6
#: Pixels that it was trained on, and latents.
SIZE_PX, LATENT_SIDE = 1024, 128


def build(folder: Path, scale: int, dtype: torch.dtype) -> None:
    """Save the model into `folder`; the same weights each time. `scale` divides the widths."""
    torch.manual_seed(0)
    made = pipeline(scale)
    made.to(dtype=dtype)
    made.save_pretrained(folder)


def pipeline(scale: int = 1, *, shallow: bool = False, vocabulary: int | None = None) -> Any:  # noqa: ANN401  # diffusers has no types
    """The model with random weights on torch's default device, in float32.

    A `shallow` one has one layer in each of the UNet's transformers, two in its mid block's, and
    three in each text encoder, for tests. `vocabulary` is the bundled tokenizer's unless given.
    """
    words = sd15.tokenizer()
    layers = {"num_hidden_layers": 3} if shallow else {}
    layers_2 = {"num_hidden_layers": TEXT_LAYERS_2} | layers
    own = {"vocab_size": vocabulary or len(words)}
    widths = {
        "hidden_size": TEXT_WIDTH_2 // scale,
        "intermediate_size": TEXT_INNER_WIDTH_2 // scale,
        "projection_dim": TEXT_WIDTH_2 // scale,
        "num_attention_heads": TEXT_HEADS_2,
        "hidden_act": "gelu",
    }
    config = sd15.text_config(scale, words, **own, **layers)
    config_2 = sd15.text_config(scale, words, **own, **widths, **layers_2)
    return StableDiffusionXLPipeline(
        vae=sd15.autoencoder(scale, sample_size=SIZE_PX, scaling_factor=0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config_2),
        tokenizer=words,
        tokenizer_2=sd15.tokenizer(),
        unet=unet(scale, (1, 1, 2) if shallow else TRANSFORMER_LAYERS),
        scheduler=_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def unet(scale: int = 1, transformer_layers: tuple[int, ...] = TRANSFORMER_LAYERS) -> Any:  # noqa: ANN401  # diffusers has no types
    """The UNet alone."""
    widths = sd15.divided(UNET_WIDTHS, scale)
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=transformer_layers,
        cross_attention_dim=(sd15.TEXT_WIDTH + TEXT_WIDTH_2) // scale,
        attention_head_dim=HEADS,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_WIDTH // scale,
        projection_class_embeddings_input_dim=(TEXT_WIDTH_2 + SIZES * SIZE_WIDTH) // scale,
        norm_num_groups=gcd(sd15.GROUPS, *widths),
    )


def _scheduler() -> Any:  # noqa: ANN401  # diffusers has no types
    with torch.device("cpu"):  # its sigmas stay on the host
        return EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        )
