"""The request, its limits, and how a broken one is told what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from api_contracts.errors import Fault, InvalidRequest
from api_contracts.names import DEFAULT_MODEL, MODEL_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic_core import ErrorDetails

MAX_PROMPT_CHARS = 2_000
MAX_METADATA_BYTES = 4_096
MAX_SEED = 2**63 - 1
#: Longest piece of a refused value that is repeated to the caller.
_ECHO_CHARS = 80
#: Names that pydantic puts into an error's place for the branch of a union.
_TAGS = frozenset({"one", "many"})
_UNIONS = frozenset({"prompt", "negative_prompt", "seed"})


@dataclass(frozen=True)
class Limits:
    """What a worker allows beyond the contract's own limits; a worker's settings set it."""

    max_side_px: int = 1024
    max_steps: int = 150
    max_images: int = 4


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Reference(_Strict):
    """An object in the configured input bucket: one tensor in a `.safetensors` file."""

    s3: str = Field(
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors$",
        max_length=512,
        description="Key below the input prefix.",
    )


class CrossAttention(_Strict):
    """`cross_attention_kwargs`."""

    scale: Annotated[float, Field(ge=0, le=10)] = 1.0


def _one_or_many(value: object) -> str:
    return "many" if isinstance(value, list) else "one"


Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
NegativePrompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Side = Annotated[int, Field(ge=64, le=16_384, multiple_of=8)]
Text = Annotated[str, Field(max_length=MAX_METADATA_BYTES)]
_PICK = Discriminator(_one_or_many)
Prompts = Annotated[
    Annotated[Prompt, Tag("one")]
    | Annotated[list[Prompt], Field(min_length=1, max_length=64), Tag("many")],
    _PICK,
]
NegativePrompts = Annotated[
    Annotated[NegativePrompt, Tag("one")]
    | Annotated[list[NegativePrompt], Field(min_length=1, max_length=64), Tag("many")],
    _PICK,
]
Seeds = Annotated[
    Annotated[Seed, Tag("one")]
    | Annotated[list[Seed], Field(min_length=1, max_length=64), Tag("many")],
    _PICK,
]


class GenerationRequest(_Strict):
    """One order of pictures. Names and meanings are those of diffusers' SAG pipeline."""

    schema_version: int = Field(default=1, ge=1, le=1)
    model: str = Field(
        default=DEFAULT_MODEL, pattern=MODEL_PATTERN, description="Alias from the settings."
    )
    prompt: Prompts | None = Field(default=None, description="Or `prompt_embeds`, one of the two.")
    negative_prompt: NegativePrompts | None = Field(
        default=None, description="One for all prompts, or as many as prompts."
    )
    height: Side | None = Field(default=None, description="Pixels; null is the model's own.")
    width: Side | None = Field(default=None, description="Pixels; null is the model's own.")
    num_inference_steps: int = Field(default=50, ge=1, le=10_000)
    guidance_scale: float = Field(default=7.5, ge=0, le=50, description="On when above 1.")
    sag_scale: float = Field(default=0.75, ge=0, le=10, description="On when above 0.")
    num_images_per_prompt: int = Field(default=1, ge=1, le=64)
    eta: float = Field(default=0.0, ge=0, le=1, description="For the `ddim` scheduler only.")
    seed: Seeds | None = Field(
        default=None,
        description="One gives seed, seed+1, … for the images; null is drawn by the worker.",
    )
    latents: Reference | None = None
    prompt_embeds: Reference | None = None
    negative_prompt_embeds: Reference | None = None
    scheduler: str | None = Field(
        default=None, pattern=r"^[a-z0-9_]{1,32}$", description="Null is the model's own."
    )
    clip_skip: int | None = Field(default=None, ge=0, le=32)
    cross_attention_kwargs: CrossAttention | None = None
    output_type: Literal["png", "jpeg", "webp", "npy", "latent"] = "png"
    callback_steps: int = Field(
        default=1, ge=1, le=10_000, description="Steps between progress events."
    )
    preview_every: int = Field(
        default=0, ge=0, le=10_000, description="Steps between previews; 0 is never."
    )
    deadline_s: float | None = Field(
        default=None, gt=0, description="Seconds from submission; past it the task expires."
    )
    priority: int = Field(default=5, ge=0, le=9, description="0 goes first.")
    metadata: dict[Text, Text] = Field(
        default_factory=dict, description="Comes back in every event, untouched."
    )
    traceparent: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
    )

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts as a row; empty when embeddings stand for them."""
        return _row(self.prompt)

    @property
    def negative_prompts(self) -> tuple[str, ...]:
        """The negative prompts as a row."""
        return _row(self.negative_prompt)

    def seeds(self, images: int) -> tuple[int, ...] | None:
        """The seed of each image, or None when the worker is to draw them."""
        if self.seed is None:
            return None
        if isinstance(self.seed, int):
            return tuple(self.seed + number for number in range(images))
        return tuple(self.seed)

    def to_wire(self) -> dict[str, Any]:
        """As JSON, with only the fields that were set: a model's defaults stand for the rest."""
        return self.model_dump(mode="json", exclude_unset=True)


def _row(value: str | list[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def parse_request(data: Mapping[str, Any], limits: Limits | None = None) -> GenerationRequest:
    """The request in `data`; raises `InvalidRequest` with every fault that was found.

    Without `limits` only the contract's own are checked.
    """
    if not isinstance(data, dict):
        raise InvalidRequest([Fault(where="request", what="is not an object", limit="object")])
    try:
        request = GenerationRequest.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise InvalidRequest([_fault(detail) for detail in found[:20]]) from None
    if faults := [*_contradictions(request), *(_beyond(request, limits) if limits else ())]:
        raise InvalidRequest(faults)
    return request


def _fault(detail: ErrorDetails) -> Fault:
    where = ""
    for part in detail["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif part not in _TAGS or where not in _UNIONS:
            where += f".{part}" if where else part
    given = detail["input"]
    echo = "" if detail["type"] == "missing" else f" (got {_echo(given)})"
    context = {key: value for key, value in detail.get("ctx", {}).items() if key != "error"}
    limit = ", ".join(f"{key} {value}" for key, value in context.items()) or detail["type"]
    return Fault(where=where[:200] or "request", what=detail["msg"] + echo, limit=limit)


def _echo(value: object) -> str:
    if isinstance(value, str | list | dict):
        text = repr(value[:_ECHO_CHARS]) if isinstance(value, str) else type(value).__name__
        return f"{text}, length {len(value)}"
    if isinstance(value, int) and value.bit_length() > _ECHO_CHARS:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)[:_ECHO_CHARS].encode("ascii", "backslashreplace").decode()


def _contradictions(request: GenerationRequest) -> Iterator[Fault]:
    """What is wrong between fields, each of which is right by itself."""
    prompts = len(request.prompts)
    if bool(prompts) == (request.prompt_embeds is not None):
        yield Fault(where="prompt", what="give `prompt` or `prompt_embeds`", limit="one of the two")
    if request.negative_prompt is not None and request.negative_prompt_embeds is not None:
        yield Fault(
            where="negative_prompt",
            what="give `negative_prompt` or `negative_prompt_embeds`",
            limit="one of the two",
        )
    negatives = request.negative_prompt
    if isinstance(negatives, list) and prompts and len(negatives) != prompts:
        yield Fault(
            where="negative_prompt",
            what=f"has {len(negatives)} entries for {prompts} prompts",
            limit="as many as prompts",
        )
    images = (prompts or 1) * request.num_images_per_prompt
    if isinstance(request.seed, list) and prompts and len(request.seed) != images:
        yield Fault(
            where="seed", what=f"has {len(request.seed)} entries for {images} images", limit="equal"
        )
    if isinstance(request.seed, int) and request.seed + images - 1 > MAX_SEED:
        yield Fault(where="seed", what="the last image's seed is too large", limit=f"<= {MAX_SEED}")
    if request.eta > 0 and request.scheduler not in (None, "ddim"):
        yield Fault(
            where="eta", what=f"has no meaning for scheduler {request.scheduler}", limit="ddim only"
        )
    size_bytes = len(json.dumps(request.metadata, ensure_ascii=False).encode())
    if size_bytes > MAX_METADATA_BYTES:
        yield Fault(
            where="metadata",
            what=f"takes {size_bytes} bytes as JSON",
            limit=f"<= {MAX_METADATA_BYTES} bytes",
        )


def _beyond(request: GenerationRequest, limits: Limits) -> Iterator[Fault]:
    """What this worker's limits do not allow."""
    for where, side in (("height", request.height), ("width", request.width)):
        if side is not None and side > limits.max_side_px:
            yield Fault(where=where, what=f"is {side} px", limit=f"<= {limits.max_side_px}")
    if request.num_inference_steps > limits.max_steps:
        yield Fault(
            where="num_inference_steps",
            what=f"is {request.num_inference_steps}",
            limit=f"<= {limits.max_steps}",
        )
    images = (len(request.prompts) or 1) * request.num_images_per_prompt
    if images > limits.max_images:
        yield Fault(
            where="num_images_per_prompt",
            what=f"prompts x images is {images}",
            limit=f"<= {limits.max_images}",
        )
