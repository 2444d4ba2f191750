"""A valid request with every default filled in, and the engine's job for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from api_contracts.errors import FieldError
from api_contracts.names import DEFAULT_PRIORITY
from api_contracts.parse import parse_request
from api_contracts.pushes import PushKind
from worker.config import push_targets
from worker.engine.jobs.job import Job
from worker.errors import BadRequestError, UnknownModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from api_contracts.request import GenerationRequest, Limits
    from worker.config.models import ModelSpec
    from worker.config.settings import Settings
    from worker.execution.input_images import InputImage

#: Fields that no image depends on and that may hold a token: they are written to no file. Nor is
#: the caller's span: the bytes of an image do not depend on whether somebody traces.
LEFT_OUT = {*(kind.value for kind in PushKind), "traceparent"}
#: Fields that refer to a tensor in the input bucket, and to a picture there.
TENSORS = (
    "latents", "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)  # fmt: skip
PICTURES = ("image", "mask_image")
#: Length of the names that an error lists, in characters.
MAX_LIST_CHARS = 300
#: Fields that a job has by the same names and with the same values.
_OF_JOB = (
    "model", "num_inference_steps", "guidance_scale", "sag_scale", "num_images_per_prompt", "eta",
    "scheduler", "output_type", "preview_every", "clip_skip", "sag_blur_sigma",
    "sag_mask_threshold", "sag_start", "sag_stop", "guidance_rescale",
)  # fmt: skip


@dataclass(frozen=True)
class ResolvedRequest:
    """A valid request, and the same with the defaults of its model."""

    task_id: str
    #: As the caller sent it.
    request: GenerationRequest
    #: With the model's defaults in place of what was left out, and a seed.
    complete: GenerationRequest
    #: The worker's limits, which a file of embeddings and the model's own size can exceed.
    limits: Limits
    #: Of its delivery.
    priority: int

    @classmethod
    def of(
        cls,
        request: GenerationRequest,
        task_id: str,
        settings: Settings,
        priority: int = DEFAULT_PRIORITY,
    ) -> ResolvedRequest:
        """Fill in the defaults of the request's model and check the worker's limits.

        Raises `UnknownModelError`, `InvalidRequest`, and `BadRequestError` for what is not served.
        """
        spec = settings.models.get(request.model)
        if spec is None:
            known = ", ".join(sorted(settings.models))
            message = f"no model {request.model!r} on this worker; it serves {known}"
            raise UnknownModelError(message, where="model", limit=known)
        # An image has a size of its own.
        given = request.model_fields_set | (set() if request.image is None else {"height", "width"})
        defaults = {
            name: value
            for name, value in spec.defaults.model_dump().items()
            if value is not None and name not in given
        }
        wire = {"seed": _seed_from_id(task_id)} | _with_guidance(request, spec, defaults)
        wire |= {
            name: value
            for name, value in request.to_wire().items()
            if value is not None or name == "class_labels"  # null is no class
        }
        _refuse_unserved(request, spec, settings.max_adapters)
        wire["loras"] = _with_scales(request, spec)
        if refused := [*push_targets.faults(request, settings.reply_to, settings.webhook_hosts)]:
            raise BadRequestError(*refused)
        complete = parse_request(wire, settings.limits)
        return cls(task_id, request, complete, settings.limits, priority)

    @property
    def parameters(self) -> dict[str, Any]:
        """Every field as it was used, for the result and the manifest."""
        unused = set() if self.complete.image else {"strength"}
        return self.complete.model_dump(mode="json", exclude=LEFT_OUT | unused)

    @property
    def origin(self) -> dict[str, Any]:
        """The request as it was sent, for the image's text chunk."""
        wire = self.request.to_wire()
        return {name: value for name, value in wire.items() if name not in LEFT_OUT}

    @property
    def references(self) -> dict[str, str]:
        """The keys of input files by the fields that refer to them."""
        found = {name: getattr(self.complete, name) for name in (*PICTURES, *TENSORS)}
        return {name: each.s3 for name, each in found.items() if each is not None}

    def job(self, inputs: Mapping[str, bytes], picture: InputImage | None = None) -> Job:
        """The engine's job; `inputs` are the files of `references`, `picture` is made of them."""
        request, attention = self.complete, self.complete.cross_attention_kwargs
        seed, scale = request.seed, 1.0 if attention is None else attention.scale
        size = request if picture is None else picture
        same: dict[str, Any] = {name: getattr(request, name) for name in _OF_JOB}
        return Job(
            **(same | {name: inputs.get(name) for name in TENSORS}),
            id=self.task_id,
            prompts=request.prompts,
            negative_prompts=request.negative_prompts,
            prompts_2=request.prompts_2,
            class_labels=request.labels,
            negative_prompts_2=request.negative_prompts_2,
            height=size.height,
            width=size.width,
            original_size=_pair(request.original_size),
            crops_coords_top_left=_pair(request.crops_coords_top_left),
            target_size=_pair(request.target_size),
            image=None if picture is None else picture.image,
            mask_image=None if picture is None else picture.mask_image,
            strength=1.0 if picture is None else request.strength,
            seeds=tuple(seed) if isinstance(seed, list) else (seed or 0,),
            max_images=self.limits.max_images,
            max_side_px=self.limits.max_side_px,
            priority=self.priority,
            lora_scale=None if scale == 1 else scale,
            loras=tuple((each.name, each.scale or 0.0) for each in request.loras or ()),
        )


def _pair(values: list[int] | None) -> tuple[int, int] | None:
    return None if values is None else (values[0], values[1])


def _seed_from_id(task_id: str) -> int:
    """The seed of a request without one: derived from the id, so every attempt draws the same."""
    return int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:4])


def _with_guidance(
    request: GenerationRequest, spec: ModelSpec, defaults: dict[str, Any]
) -> dict[str, Any]:
    """The defaults, with a `guidance_scale` of 1 where there is nothing to guide away from.

    So it is without a class, and with one for a model that knows no picture without a class.
    """
    is_guided = request.prompts or request.prompt_embeds is not None
    is_guided = is_guided or (bool(request.labels) and spec.null_class is not None)
    return defaults | ({} if is_guided else {"guidance_scale": 1.0})


def _with_scales(request: GenerationRequest, spec: ModelSpec) -> list[dict[str, Any]] | None:
    """`loras` with the adapters' own scales where the request gives none; None without any."""
    return [
        {
            "name": each.name,
            "scale": spec.adapters[each.name].scale if each.scale is None else each.scale,
        }
        for each in request.loras or ()
    ] or None


def _faults_of_loras(
    request: GenerationRequest, spec: ModelSpec, max_adapters: int
) -> Iterator[FieldError]:
    """Adapters that the settings do not name for the model, or more than it keeps loaded."""
    loras = request.loras or []
    for index, each in enumerate(loras):
        if each.name not in spec.adapters:
            what = f"{each.name!r} is no adapter of model {request.model!r} on this worker"
            known = _listed(sorted(spec.adapters)) or "none: it has no adapters"
            yield FieldError(where=f"loras[{index}].name", what=what, limit=known)
    if len(loras) > max_adapters:
        what = f"has {len(loras)} entries"
        yield FieldError(where="loras", what=what, limit=f"<= {max_adapters} (SAG_MAX_ADAPTERS)")


def _listed(names: list[str]) -> str:
    """Names, whole, as many as are short enough for an error, and how many more there are."""
    shown = names
    while len(", ".join(shown)) > MAX_LIST_CHARS:
        shown = shown[:-1]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _refuse_unserved(request: GenerationRequest, spec: ModelSpec, max_adapters: int) -> None:
    """Refuse what the contract allows and this model can't do."""
    faults = [*_faults_of_loras(request, spec, max_adapters)]
    if request.cross_attention_kwargs is not None and not (spec.lora or request.loras):
        what = "has no effect: no LoRA is loaded with this model; leave it out"
        faults.append(FieldError(where="cross_attention_kwargs", what=what, limit="null"))
    if request.preview_every and spec.safety_checker:
        what = "is not served by a model with a safety checker, which can't judge unfinished images"
        faults.append(FieldError(where="preview_every", what=what, limit="0"))
    if faults:
        raise BadRequestError(*faults)
