"""The request and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import Field

from api_contracts.names import DEFAULT_MODEL, DEFAULT_PRIORITY, MODEL_PATTERN
from api_contracts.request_types import (
    MAX_URL_CHARS,
    TRACEPARENT_PATTERN,
    URL_PATTERN,
    Corner,
    CrossAttention,
    ImageReference,
    Labels,
    Loras,
    Prompts,
    Reference,
    ReplyTo,
    Seeds,
    Side,
    Size,
    Strict,
    Text,
)

_T = TypeVar("_T")
#: Schedulers that use `eta`.
ETA_SCHEDULERS = ("ddim", "tcd")


@dataclass(frozen=True)
class Limits:
    """Limits of a worker beside those of the contract; set by its settings."""

    max_side_px: int = 1024
    max_steps: int = 150
    max_images: int = 4


class GenerationRequest(Strict):
    """One request for pictures. Names and meanings are those of diffusers' pipelines."""

    schema_version: int = Field(default=1, ge=1, le=1, description="Of this contract.")
    model: str = Field(
        default=DEFAULT_MODEL, pattern=MODEL_PATTERN, description="Alias from the settings."
    )
    prompt: Prompts | None = Field(
        default=None,
        description="Or `prompt_embeds`; to a pixel-space model `class_labels`. One of the three.",
    )
    negative_prompt: Prompts | None = Field(
        default=None, description="One for all prompts, or as many as prompts."
    )
    prompt_2: Prompts | None = Field(
        default=None,
        description="For the second text encoder of SDXL: one for all prompts, or as many as "
        "prompts; null is `prompt`.",
    )
    negative_prompt_2: Prompts | None = Field(
        default=None,
        description="For the second text encoder of SDXL, with `negative_prompt`: one for all "
        "prompts, or as many as prompts; null is `negative_prompt`.",
    )
    height: Side | None = Field(
        default=None, description="Pixels; null is the size of `image`, else the model's own."
    )
    width: Side | None = Field(default=None, description="As `height`.")
    num_inference_steps: int = Field(
        default=50,
        ge=1,
        le=10_000,
        description="At most the worker's `SAG_MAX_STEPS`. Left out, the model's own.",
    )
    guidance_scale: float = Field(
        default=7.5, ge=0, le=50, description="On when above 1. Left out, the model's own."
    )
    sag_scale: float = Field(
        default=0.75, ge=0, le=10, description="On when above 0. Left out, the model's own."
    )
    sag_blur_sigma: float = Field(
        default=1.0, ge=0.1, le=10, description="The blur's, in cells. Left out, the model's own."
    )
    sag_mask_threshold: float = Field(
        default=1.0,
        ge=0,
        le=4,
        description="Positions that get more attention are blurred; the mean of all is 1.",
    )
    sag_start: float = Field(
        default=0.0, ge=0, le=1, description="Share of the steps that pass before SAG is used."
    )
    sag_stop: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of the steps after which SAG is not used; above `sag_start`.",
    )
    guidance_rescale: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="How much of the guided output is rescaled to the standard deviation of the "
        "output with the prompt; with `guidance_scale` above 1.",
    )
    num_images_per_prompt: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Times the prompts at most the worker's `SAG_MAX_IMAGES`.",
    )
    eta: float = Field(
        default=0.0, ge=0, le=1, description=f"For the schedulers {' and '.join(ETA_SCHEDULERS)}."
    )
    seed: Seeds | None = Field(
        default=None,
        description="One gives seed, seed+1, … for the images; null takes one from the task id.",
    )
    image: ImageReference | None = Field(
        default=None, description="Picture to start from, resized to `height` and `width`."
    )
    strength: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="How much noise is added to `image`, and share of the steps. With `image`.",
    )
    mask_image: ImageReference | None = Field(
        default=None,
        description="What of `image` is repainted: white; black stays. With `image`.",
    )
    latents: Reference | None = Field(
        default=None,
        description="First latents, (images, channels, height / f, width / f), not with `image`.",
    )
    prompt_embeds: Reference | None = Field(
        default=None, description="(prompts, tokens, width of the text encoder), not with `prompt`."
    )
    negative_prompt_embeds: Reference | None = Field(
        default=None, description="As `prompt_embeds`, not with `negative_prompt`."
    )
    pooled_prompt_embeds: Reference | None = Field(
        default=None,
        description="(prompts, width of SDXL's second text encoder), with `prompt_embeds`.",
    )
    negative_pooled_prompt_embeds: Reference | None = Field(
        default=None, description="The same with `negative_prompt_embeds`."
    )
    original_size: Size | None = Field(
        default=None, description="For SDXL: height and width; null is the size that is made."
    )
    crops_coords_top_left: Corner | None = Field(
        default=None, description="For SDXL: top and left; null is the corner, 0 and 0."
    )
    target_size: Size | None = Field(
        default=None, description="For SDXL: height and width; null is the size that is made."
    )
    class_labels: Labels | None = Field(
        default=None, description="For pixel-space models, not beside `prompt`; null is no class."
    )
    scheduler: str | None = Field(
        default=None, pattern=r"^[a-z0-9_]{1,32}$", description="Null is the model's own."
    )
    clip_skip: int | None = Field(
        default=None, ge=0, le=32, description="Last layers of the text encoder that are left out."
    )
    cross_attention_kwargs: CrossAttention | None = Field(
        default=None, description="Only `scale`, of the model's LoRA and of `loras`."
    )
    loras: Loras | None = Field(
        default=None, description="Adapters of the model for these images, each with its scale."
    )
    output_type: Literal["png", "jpeg", "webp", "npy", "latent"] = Field(
        default="png", description="The files' format; `npy` is float32 pixels, `latent` latents."
    )
    callback_steps: int = Field(
        default=1, ge=1, le=10_000, description="Steps between progress events."
    )
    preview_every: int = Field(
        default=0, ge=0, le=10_000, description="Steps between previews; 0 is never."
    )
    deadline_s: float | None = Field(
        default=None, gt=0, description="Seconds from submission; past it the task expires."
    )
    priority: int = Field(default=DEFAULT_PRIORITY, ge=0, le=9, description="0 goes first.")
    metadata: dict[Text, Text] = Field(
        default_factory=dict, description="Comes back in every event, untouched."
    )
    reply_to: ReplyTo | None = Field(
        default=None,
        description="Where to send the terminal event, once it is in the stream; one of the "
        "worker's `SAG_REPLY_TO`.",
    )
    webhook: str | None = Field(
        default=None,
        pattern=URL_PATTERN,
        max_length=MAX_URL_CHARS,
        description="Where to post the terminal event, signed; on one of the worker's "
        "`SAG_WEBHOOK_HOSTS`.",
    )
    traceparent: str | None = Field(
        default=None,
        pattern=TRACEPARENT_PATTERN,
        description="W3C trace context.",
    )

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts as a tuple; empty when embeddings replace them."""
        return _as_tuple(self.prompt)

    @property
    def negative_prompts(self) -> tuple[str, ...]:
        """The negative prompts as a tuple."""
        return _as_tuple(self.negative_prompt)

    @property
    def prompts_2(self) -> tuple[str, ...]:
        """The prompts of a second text encoder as a tuple; empty for those of the first."""
        return _as_tuple(self.prompt_2 or None)

    @property
    def negative_prompts_2(self) -> tuple[str, ...]:
        """The negative prompts of a second text encoder as a tuple."""
        return _as_tuple(self.negative_prompt_2 or None)

    @property
    def labels(self) -> tuple[int, ...]:
        """The class labels as a tuple; empty for no class."""
        return _as_tuple(self.class_labels)

    @property
    def rows(self) -> int:
        """Prompts or classes; `num_images_per_prompt` pictures are made of each."""
        return len(self.prompts) or len(self.labels) or 1

    def to_wire(self) -> dict[str, Any]:
        """As JSON, with only the fields that were set, so that the model's defaults apply."""
        return self.model_dump(mode="json", exclude_unset=True)


def _as_tuple(value: _T | list[_T] | None) -> tuple[_T, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)
