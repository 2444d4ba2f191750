"""Input and output of the engine: `Job` and `JobResult`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from api_contracts.errors import FieldError
from api_contracts.names import DEFAULT_PRIORITY
from worker.errors import BadRequestError

#: Names and scales of the adapters of one row, or of one text.
Adapters: TypeAlias = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Job:
    """One request, with diffusers' names. None in a field means the model's own default."""

    id: str
    model: str
    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    #: In pixels; None is the model's own size.
    height: int | None
    width: int | None
    num_inference_steps: int
    guidance_scale: float
    sag_scale: float
    num_images_per_prompt: int
    eta: float
    #: One for each image, or the first of consecutive seeds.
    seeds: tuple[int, ...]
    max_images: int
    max_side_px: int
    scheduler: str | None
    output_type: str
    #: Steps between two previews; 0 is none.
    preview_every: int = 0
    #: Last layers of the text encoder that are left out.
    clip_skip: int | None = None
    #: Factor on the scales of the model's LoRA weights and of `loras`; None is 1.
    lora_scale: float | None = None
    #: Those of the model's adapters that it uses.
    loras: Adapters = ()
    #: 0 goes first, 9 last.
    priority: int = DEFAULT_PRIORITY
    #: Contents of safetensors files, one tensor each.
    latents: bytes | None = None
    prompt_embeds: bytes | None = None
    negative_prompt_embeds: bytes | None = None
    pooled_prompt_embeds: bytes | None = None
    negative_pooled_prompt_embeds: bytes | None = None
    #: For a second text encoder; without any it gets `prompts`.
    prompts_2: tuple[str, ...] = ()
    negative_prompts_2: tuple[str, ...] = ()
    #: Height and width in pixels, top and left; None is the image's own size, or (0, 0).
    original_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None
    #: Of a pixel-space model, in place of prompts; empty is no class.
    class_labels: tuple[int, ...] = ()
    #: Pixels of `height` x `width` to start from, 3 bytes each, rows from the top.
    image: bytes | None = None
    #: One byte for each pixel of `image`: above 127 is repainted.
    mask_image: bytes | None = None
    #: How much noise is added to `image`; 1 leaves hardly anything of it. Times
    #: `num_inference_steps` it is at least 1.
    strength: float = 1.0
    #: Sigma of SAG's blur, in cells of the latents.
    sag_blur_sigma: float = 1.0
    #: Column sum above which a position is salient; their mean is 1.
    sag_mask_threshold: float = 1.0
    #: SAG is used in the steps between these shares of all.
    sag_start: float = 0.0
    sag_stop: float = 1.0
    guidance_rescale: float = 0.0
    #: Steps between two checkpoints; 0 is none.
    checkpoint_every: int = 0
    #: Checkpoint of an earlier attempt. An unusable one is logged and ignored.
    checkpoint: bytes | None = None

    @property
    def adapter_names(self) -> frozenset[str]:
        """The names in `loras`."""
        return frozenset(name for name, _ in self.loras)

    @property
    def adapters(self) -> Adapters:
        """`loras` at the scales that its rows and texts have: times `lora_scale`."""
        factor = 1.0 if self.lora_scale is None else self.lora_scale
        return tuple((name, scale * factor) for name, scale in self.loras)


@dataclass(frozen=True)
class Timing:
    """Seconds that a job spent in each phase inside the engine."""

    wait_s: float
    load_s: float
    encode_s: float
    denoise_s: float
    decode_s: float


@dataclass(frozen=True)
class GeneratedImage:
    """One image: `pixels` is a PIL image, floats (h, w, 3) in 0 … 1, or latents (c, h, w)."""

    pixels: Any
    width: int
    height: int
    seed: int
    #: None where the model has no safety checker, and for latents.
    nsfw_content_detected: bool | None


@dataclass(frozen=True)
class JobResult:
    """The images of a finished job, and how they were made."""

    images: tuple[GeneratedImage, ...]
    timing: Timing
    scheduler: str
    #: Mean number of jobs in its UNet calls.
    batch: float
    versions: dict[str, str]
    #: Precision of the UNet, as torch names it.
    dtype: str
    #: Ends of prompts beyond the text encoder's length, which had no effect.
    truncated: tuple[str, ...] = ()
    #: Step of the checkpoint that it resumed from.
    resumed_from_step: int | None = None


def refusal(where: str, what: str, limit: str) -> BadRequestError:
    """The error that refuses a job for its field `where`."""
    return BadRequestError(FieldError(where=where, what=what[:300], limit=limit))
