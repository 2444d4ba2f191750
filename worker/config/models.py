"""The models of the settings: path, precision, additions and request defaults of each."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api_contracts.request_types import ADAPTER_PATTERN, MAX_LORA_SCALE

#: The bundled model. It is inside the package, so that checkout, wheel and Docker image have it.
SHIPPED_MODEL = Path(__file__).resolve().parents[1] / "models" / "tiny-shapes"
#: The bundled pixel-space model, which draws classes instead of prompts.
SHIPPED_PIXEL_MODEL = SHIPPED_MODEL.with_name("tiny-shapes-pixels")

#: Its alias where a worker serves both.
PIXELS = "pixels"

#: The end of every file of weights that is read.
SAFETENSORS = ".safetensors"
#: Those of files that are pickled; to read one may run code.
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
#: What to do about a pickled checkpoint, or pickled weights of a folder.
CONVERT = (
    "if you trust it, convert it where no secrets are: load it with diffusers"
    " (StableDiffusionPipeline or StableDiffusionXLPipeline: from_single_file for one file,"
    " from_pretrained with use_safetensors=False for a folder), save_pretrained to a folder, and"
    " set the model's path to that"
)
#: Of owner and name, as the hub's client takes them: at most 96 characters.
_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_HUB_ID = re.compile(rf"(?!.*(?:--|\.\.)){_PART}/{_PART}(?<!\.git)\Z", re.ASCII)


def is_hub_id(path: str) -> bool:
    """Whether a path that is no folder may be a hub id, `owner/name`."""
    return _HUB_ID.match(path) is not None and not path.endswith((SAFETENSORS, *PICKLES))


def is_local(path: str) -> bool:
    """Whether a model's path needs no download: it exists, or is no hub id at all."""
    return Path(path).exists() or not is_hub_id(path)


AdapterName = Annotated[str, Field(pattern=ADAPTER_PATTERN)]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]


class ModelDefaults(BaseModel):
    """Values for fields that a request leaves out; None means the contract's own default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_inference_steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = Field(default=None, ge=0, le=50)
    sag_scale: float | None = Field(default=None, ge=0, le=10)
    sag_blur_sigma: float | None = Field(default=None, ge=0.1, le=10)
    sag_mask_threshold: float | None = Field(default=None, ge=0, le=4)
    scheduler: str | None = None
    height: int | None = Field(default=None, ge=64, multiple_of=8)
    width: int | None = Field(default=None, ge=64, multiple_of=8)


class Lora(BaseModel):
    """LoRA weights that are loaded with a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="A safetensors file, or a folder or hub id.")
    scale: float = Field(default=1.0, ge=0, le=10)


class Adapter(Lora):
    """LoRA weights that a request may name in `loras`."""

    scale: float = Field(
        default=1.0,
        ge=-MAX_LORA_SCALE,
        le=MAX_LORA_SCALE,
        description="Of requests that give none.",
    )


class TextualInversion(BaseModel):
    """A word that is added to a model's vocabulary (textual inversion)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="A safetensors file, or a folder or hub id.")
    token: str = Field(min_length=1, description="The word in prompts, as `<ring>`.")


class ModelSpec(BaseModel):
    """One model: its path and how it is loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(
        min_length=1,
        description="A local folder in diffusers' layout, a hub id, or a .safetensors checkpoint.",
    )
    config: str | None = Field(
        default=None,
        min_length=1,
        description="Of a checkpoint in one file: a folder or hub id with its configuration.",
    )
    variant: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_-]{1,50}$",
        description="Of a folder or hub id: the weights whose files have it in their name: `fp16`.",
    )
    dtype: Dtype = "auto"
    safety_checker: bool = True
    vae_slicing: bool = False
    vae_tiling: bool = False
    lora: tuple[Lora, ...] = ()
    adapters: dict[AdapterName, Adapter] = {}
    textual_inversion: tuple[TextualInversion, ...] = ()
    sag_layer: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9_.]{1,200}$",
        description="The UNet's self-attention that SAG reads; the mid block's first unless set.",
    )
    null_class: int | None = Field(
        default=None,
        ge=0,
        description="Of a pixel-space model: the label that it was trained with for no class.",
    )
    defaults: ModelDefaults = ModelDefaults()

    @property
    def is_single_file(self) -> bool:
        """Whether `path` is a checkpoint of the whole model in one file."""
        is_folder = os.path.isdir(self.path)  # noqa: PTH112  # pathlib's raises without permission
        return self.path.endswith(SAFETENSORS) and not is_folder

    @model_validator(mode="after")
    def _check_layout(self) -> Self:
        if self.config is not None and not self.is_single_file:
            message = f"config is for a {SAFETENSORS} checkpoint; a folder or hub id has its own"
            raise ValueError(message)
        if self.variant is not None and self.is_single_file:
            raise ValueError("variant is for a folder or hub id; a checkpoint in one file has none")
        return self


def shipped() -> ModelSpec:
    """Settings of the bundled model."""
    return ModelSpec(
        path=str(SHIPPED_MODEL),
        safety_checker=False,
        defaults=ModelDefaults(num_inference_steps=25, guidance_scale=3.0),
    )


def shipped_pixels() -> ModelSpec:
    """Settings of the bundled pixel-space model; `training.pixels.classes` has its labels."""
    return ModelSpec(
        path=str(SHIPPED_PIXEL_MODEL),
        safety_checker=False,
        null_class=60,
        defaults=ModelDefaults(num_inference_steps=25, guidance_scale=1.0),
    )


def shipped_environment() -> dict[str, str]:
    """The settings of a worker that serves both bundled models and keeps both loaded."""
    specs = {"default": shipped(), PIXELS: shipped_pixels()}
    models = {
        alias: spec.model_dump(mode="json", exclude_defaults=True) for alias, spec in specs.items()
    }
    return {"SAG_MODELS": json.dumps(models), "SAG_MAX_MODELS": str(len(specs))}
