"""ADM at the size of ImageNet 256 x 256 without classes, with random weights.

Dhariwal & Nichol 2021, arXiv 2105.05233; the configuration is that of the authors of
Self-Attention Guidance, in diffusers' words. 553 million parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from worker.engine.families.pixel import NoAutoencoder, PixelPipeline

#: Settings of such a model: the attention of output block 2, and the authors' sigma.
SAG_LAYER, BLUR_SIGMA = "up_blocks.0.attentions.2", 9.0
_LEVELS = (256, 256, 512, 512, 1024, 1024)


def pipeline(part: int = 1, classes: int | None = None, dtype: torch.dtype = torch.float32) -> Any:  # noqa: ANN401  # diffusers has no types
    """The pipeline of a model whose widths are divided by `part`; of `classes` and none."""
    unet = UNet2DModel(
        sample_size=256 // part,
        out_channels=6,
        block_out_channels=tuple(width // part for width in _LEVELS),
        down_block_types=("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3,
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=max(1, 64 // part),
        attn_norm_num_groups=max(1, 32 // part),
        norm_num_groups=max(1, 32 // part),
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=None if classes is None else classes + 1,
    )
    scheduler = DDPMScheduler(variance_type="learned_range")
    return PixelPipeline(unet, scheduler, NoAutoencoder(3, dtype), classes)
