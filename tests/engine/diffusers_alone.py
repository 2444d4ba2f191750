"""Models by diffusers alone, latents of the bundled one, and random LoRA weights for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from tests.engine.jobs import SPEC

if TYPE_CHECKING:
    from pathlib import Path

PROMPT = "a large red star on a blue background"
#: Latents that must differ do so by more than this, a hundred times the rounding of three steps.
OTHER = 0.05


def bare(path: str = SPEC.path) -> Any:
    """A model, the bundled one by default, by diffusers alone."""
    pipe = DiffusionPipeline.from_pretrained(
        path, local_files_only=True, **({} if "xl" in path else {"safety_checker": None})
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def plain(pipe: Any, **arguments: Any) -> torch.Tensor:
    """Latents by `StableDiffusionPipeline`'s own call, with the fields of `job` but SAG."""
    given = {
        "prompt": PROMPT,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "generator": [torch.Generator("cpu").manual_seed(5)],
        "output_type": "latent",
    }
    latents: torch.Tensor = pipe(**(given | arguments)).images
    return latents


def save_lora(folder: Path, seed: int) -> str:
    """Random LoRA weights, of rank 4, for attention in the UNet and in the text encoder."""
    pipe, generator = bare(), torch.Generator().manual_seed(seed)
    layers = {}
    for part, targets in (
        ("unet", ["to_q", "to_k", "to_v"]),
        ("text_encoder", ["q_proj", "v_proj"]),
    ):
        module = getattr(pipe, part)
        module.requires_grad_(False)
        module.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets))
        state = get_peft_model_state_dict(module)
        layers[f"{part}_lora_layers"] = {
            name: torch.randn(weight.shape, generator=generator) * 0.15
            for name, weight in state.items()
        }
    StableDiffusionPipeline.save_lora_weights(folder, safe_serialization=True, **layers)
    return str(folder / "pytorch_lora_weights.safetensors")
