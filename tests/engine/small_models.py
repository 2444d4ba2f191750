"""Small models of other kinds than the bundled one, with random weights, saved as folders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from worker.config.models import SHIPPED_MODEL, ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

#: Width of the pooled embeddings, and of each embedded size.
POOLED, SIZE_WIDTH = 24, 8


def spec(path: Path) -> ModelSpec:
    """Settings of a saved model, in float32."""
    return ModelSpec(path=str(path), safety_checker=False, dtype="float32")


def save_xl(folder: Path, vae: Any = None, **unet: Any) -> Path:
    """Stable Diffusion XL with the bundled autoencoder and tokenizer; `unet` changes its config."""
    torch.manual_seed(0)
    own = _components()
    made = diffusers.StableDiffusionXLPipeline(
        vae=vae or own["vae"],
        text_encoder=_encoder(CLIPTextModel, 32),
        text_encoder_2=_encoder(CLIPTextModelWithProjection, 48),
        tokenizer=own["tokenizer"],
        tokenizer_2=own["tokenizer"],
        unet=diffusers.UNet2DConditionModel(**(_XL_UNET | unet)),
        scheduler=_sd15_noise(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    made.save_pretrained(folder)
    return folder


def save_inpainting(folder: Path) -> Path:
    """The bundled model with a UNet that takes a mask and a masked picture, too."""
    torch.manual_seed(1)
    own = _components()
    wide = diffusers.UNet2DConditionModel.from_config(own["unet"].config, in_channels=9)
    weights = own["unet"].state_dict()
    extra = 0.05 * torch.randn(weights["conv_in.weight"].shape[0], 5, 3, 3)
    weights["conv_in.weight"] = torch.cat([weights["conv_in.weight"], extra], dim=1)
    wide.load_state_dict(weights)
    made = diffusers.StableDiffusionInpaintPipeline(
        **(own | {"unet": wide, "scheduler": _sd15_noise()}), requires_safety_checker=False
    )
    made.save_pretrained(folder)
    return folder


def save_v2(folder: Path, prediction_type: str = "v_prediction") -> Path:
    """A model as of Stable Diffusion 2: linear projections, and heads of one width."""
    torch.manual_seed(4)
    own = _components()
    linear = {"use_linear_projection": True, "attention_head_dim": (2, 4)}
    made = diffusers.StableDiffusionPipeline(
        **own
        | {
            "text_encoder": _encoder(CLIPTextModel, 64),
            "unet": diffusers.UNet2DConditionModel.from_config(
                own["unet"].config, cross_attention_dim=64, **linear
            ),
            "scheduler": _sd15_noise(prediction_type=prediction_type),
        },
        requires_safety_checker=False,
    )
    made.save_pretrained(folder)
    return folder


def save_pixels(
    folder: Path, kind: Any = diffusers.DDPMPipeline, scheduler: Any = None, **unet: Any
) -> Path:
    """A pixel-space model as ADM, 16 px; `unet` changes its configuration.

    Without a `scheduler` it has that of IDDPM: the cosine schedule, by DDPM.
    """
    torch.manual_seed(3)
    made = kind(
        unet=diffusers.UNet2DModel(**(_PIXEL_UNET | unet)),
        scheduler=scheduler or diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    )
    made.save_pretrained(folder)
    return folder


def save_with_vae(folder: Path, vae: Any) -> Path:
    """The bundled model with another autoencoder."""
    parts = _components() | {"vae": vae, "scheduler": _sd15_noise()}
    made = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    made.save_pretrained(folder)
    return folder


def tiny_vae() -> Any:
    """A small AutoencoderTiny, which gives latents without a distribution."""
    torch.manual_seed(2)
    size = {
        "encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8),
        "num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1),
    }  # fmt: skip
    return diffusers.AutoencoderTiny(**size)


def vae_of(**config: Any) -> Any:
    """The bundled autoencoder with another configuration of its latents."""
    vae = _components()["vae"]
    vae.register_to_config(**config)
    return vae


_XL_UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "cross_attention_dim": 32 + 48,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": SIZE_WIDTH,
    "projection_class_embeddings_input_dim": POOLED + 6 * SIZE_WIDTH,
}


_PIXEL_UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 8,
}


def _components() -> dict[str, Any]:
    """The bundled model's parts."""
    made = diffusers.StableDiffusionPipeline.from_pretrained(
        SHIPPED_MODEL, safety_checker=None, local_files_only=True
    )
    return dict(made.components)


def _sd15_noise(**config: Any) -> Any:
    """The noise schedule of Stable Diffusion: the bundled one magnifies the first rounding."""
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, **config,
    )  # fmt: skip


def _encoder(kind: Any, width: int) -> Any:
    tokenizer = CLIPTokenizer.from_pretrained(SHIPPED_MODEL / "tokenizer")
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=POOLED,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()
