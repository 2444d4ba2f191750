"""What the engine is asked for and what it returns: `Job` and `JobResult`. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """What to make. The names are diffusers'; every default is filled in but the model's own."""

    id: str
    model: str
    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    height: int | None
    width: int | None
    num_inference_steps: int
    guidance_scale: float
    sag_scale: float
    num_images_per_prompt: int
    eta: float
    #: One for each image, or one that counts up.
    seeds: tuple[int, ...]
    max_images: int
    scheduler: str | None
    output_type: str
    preview_every: int = 0
    #: Last layers of the text encoder that are left out.
    clip_skip: int | None = None
    #: Of the model's LoRA weights; None is as loaded.
    lora_scale: float | None = None
    #: Safetensors files of one tensor each, as bytes.
    latents: bytes | None = None
    prompt_embeds: bytes | None = None
    negative_prompt_embeds: bytes | None = None
    #: Steps between two checkpoints; 0 is none.
    checkpoint_every: int = 0
    #: What an earlier attempt left. One that is of no use costs a warning.
    checkpoint: bytes | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds of a job inside the engine."""

    wait_s: float
    load_s: float
    encode_s: float
    denoise_s: float
    decode_s: float


@dataclass(frozen=True)
class Picture:
    """One image: `pixels` is a PIL image, floats (h, w, 3) in 0 … 1, or latents (c, h, w)."""

    pixels: Any
    width: int
    height: int
    seed: int
    nsfw_content_detected: bool | None


@dataclass(frozen=True)
class JobResult:
    """What a job gives."""

    pictures: tuple[Picture, ...]
    timing: Timing
    scheduler: str
    #: Mean number of jobs in its steps.
    batch: float
    versions: dict[str, str]
    #: What of the prompts was beyond the text encoder's length and had no effect.
    truncated: tuple[str, ...] = ()
    #: Step of the checkpoint that it went on from.
    resumed_from_step: int | None = None
