"""The types of the request's fields, each with its own limits."""

from __future__ import annotations

import re
from typing import Annotated, TypeGuard

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

MAX_PROMPT_CHARS = 2_000
MAX_METADATA_BYTES = 4_096
MAX_SEED = 2**63 - 1
MAX_LABEL = 999_999
#: Most entries of `loras`, and largest scale of one, to either side of 0.
MAX_LORAS, MAX_LORA_SCALE = 8, 10.0
#: Names that the settings give to LoRA files.
ADAPTER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
#: Largest `height` and `width` of any worker, in pixels.
MAX_SIDE_PX = 16_384
#: Smallest `height` and `width` of a request, in pixels; a model's own may be smaller.
MIN_SIDE_PX = 64
SIDE_MULTIPLE_PX = 8
#: Names of queues and tasks of other applications.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$"
#: A URL without user, password and fragment.
URL_PATTERN = r"^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?([/?][!$-~]*)?$"
MAX_URL_CHARS = 2_000
#: W3C trace context.
TRACEPARENT_PATTERN = r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
#: A key of plain segments, without its ending.
_KEY = r"^([A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*"
_MAX_KEY_CHARS = 512
#: In any case, as cameras write `IMG_1.JPG`; patterns of JSON Schema have no flag for it.
_PICTURE_ENDING = r"\.([Pp][Nn][Gg]|[Jj][Pp][Ee]?[Gg]|[Ww][Ee][Bb][Pp])$"


def is_traceparent(value: object) -> TypeGuard[str]:
    """Whether `value` is a W3C trace context."""
    return isinstance(value, str) and re.fullmatch(TRACEPARENT_PATTERN, value) is not None


class Strict(BaseModel):
    """An object of the request: no other fields, no conversion of types, only finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Reference(Strict):
    """An object in the configured input bucket: one tensor in a `.safetensors` file."""

    s3: str = Field(
        pattern=_KEY + r"\.safetensors$",
        max_length=_MAX_KEY_CHARS,
        description="Key below the input prefix.",
    )


class ImageReference(Strict):
    """An object in the configured input bucket: a picture, PNG, JPEG or WebP."""

    s3: str = Field(
        pattern=_KEY + _PICTURE_ENDING,
        max_length=_MAX_KEY_CHARS,
        description="Key below the input prefix. The content decides on the format, not the name.",
    )


class CrossAttention(Strict):
    """`cross_attention_kwargs`."""

    scale: Annotated[float, Field(ge=0, le=10, description="How much the LoRA weighs.")] = 1.0


class LoraUse(Strict):
    """One entry of `loras`."""

    name: str = Field(
        pattern=ADAPTER_PATTERN, description="One of the model's adapters in the settings."
    )
    scale: Annotated[float, Field(ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE)] | None = Field(
        default=None, description="How much it weighs; null is the adapter's own default."
    )


class ReplyTo(Strict):
    """A task of another Celery application, to be sent when this one has ended."""

    queue: str = Field(pattern=NAME_PATTERN, description="Where the task is put.")
    task: str = Field(
        pattern=NAME_PATTERN, description="Its name; it gets one keyword argument, `event`."
    )


def _one_or_many(value: object) -> str:
    return "many" if isinstance(value, list) else "one"


Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Label = Annotated[int, Field(ge=0, le=MAX_LABEL)]
Side = Annotated[int, Field(ge=MIN_SIDE_PX, le=MAX_SIDE_PX, multiple_of=SIDE_MULTIPLE_PX)]
Text = Annotated[str, Field(max_length=MAX_METADATA_BYTES)]
#: Height and width, or top and left, in pixels.
Size = Annotated[
    list[Annotated[int, Field(ge=1, le=MAX_SIDE_PX)]], Field(min_length=2, max_length=2)
]
Corner = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_SIDE_PX)]], Field(min_length=2, max_length=2)
]
_PICK = Discriminator(_one_or_many)
Prompts = Annotated[
    Annotated[Prompt, Tag("one")]
    | Annotated[list[Prompt], Field(min_length=1, max_length=64), Tag("many")],
    _PICK,
]
Seeds = Annotated[
    Annotated[Seed, Tag("one")]
    | Annotated[list[Seed], Field(min_length=1, max_length=64), Tag("many")],
    _PICK,
]
Labels = Annotated[
    Annotated[Label, Tag("one")]
    | Annotated[list[Label], Field(min_length=1, max_length=64), Tag("many")],
    _PICK,
]
Loras = Annotated[list[LoraUse], Field(max_length=MAX_LORAS)]
