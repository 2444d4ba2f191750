"""A request with every default filled in by the settings, and the engine job it becomes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from api_contracts.errors import FieldError
from api_contracts.parse import parse_request
from api_contracts.pushes import PushKind
from worker.config import push_targets
from worker.engine.job import Job
from worker.errors import BadRequestError, UnknownModelError

if TYPE_CHECKING:
    from api_contracts.request import GenerationRequest
    from worker.config.models import ModelSpec
    from worker.config.settings import Settings


#: Fields that no picture is made of, and that may hold a token: no file has them.
WHOM_TO_TELL = {kind.value for kind in PushKind}


@dataclass(frozen=True)
class ResolvedRequest:
    """What one task is to make."""

    task_id: str
    #: As the caller sent it.
    request: GenerationRequest
    #: With the model's defaults in place of what was left out, and a seed.
    complete: GenerationRequest
    #: The worker's limit, which a file of embeddings can break.
    max_images: int

    @classmethod
    def of(cls, request: GenerationRequest, task_id: str, settings: Settings) -> ResolvedRequest:
        """Fill in the defaults of the request's model and check the worker's limits.

        Raises `UnknownModelError`, `InvalidRequest`, and `BadRequestError` for what is not served.
        """
        spec = settings.models.get(request.model)
        if spec is None:
            known = ", ".join(sorted(settings.models))
            message = f"no model {request.model!r} on this worker; it serves {known}"
            raise UnknownModelError(message, where="model", limit=known)
        defaults = {
            name: value
            for name, value in spec.defaults.model_dump().items()
            if value is not None and name not in request.model_fields_set
        }
        wire = {"seed": _own_seed(task_id)} | defaults
        wire |= {name: value for name, value in request.to_wire().items() if value is not None}
        _refuse_unserved(request, spec)
        if refused := [*push_targets.faults(request, settings.reply_to, settings.webhook_hosts)]:
            raise BadRequestError(*refused)
        complete = parse_request(wire, settings.limits)
        return cls(task_id, request, complete, settings.max_images)

    @property
    def parameters(self) -> dict[str, Any]:
        """Every field as it was used, for the result and the manifest: but for whom to tell."""
        return self.complete.model_dump(mode="json", exclude=WHOM_TO_TELL)

    @property
    def origin(self) -> dict[str, Any]:
        """The request as it was sent, for the picture's text chunk: but for whom to tell."""
        return {
            name: value
            for name, value in self.request.to_wire().items()
            if name not in WHOM_TO_TELL
        }

    def job(self, inputs: dict[str, bytes]) -> Job:
        """The engine's job; `inputs` are the files of the fields that are references."""
        request = self.complete
        seed, attention = request.seed, request.cross_attention_kwargs
        return Job(
            id=self.task_id,
            model=request.model,
            prompts=request.prompts,
            negative_prompts=request.negative_prompts,
            height=request.height,
            width=request.width,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            sag_scale=request.sag_scale,
            num_images_per_prompt=request.num_images_per_prompt,
            eta=request.eta,
            max_images=self.max_images,
            seeds=tuple(seed) if isinstance(seed, list) else (seed or 0,),
            scheduler=request.scheduler,
            output_type=request.output_type,
            preview_every=request.preview_every,
            clip_skip=request.clip_skip,
            lora_scale=None if attention is None or attention.scale == 1 else attention.scale,
            latents=inputs.get("latents"),
            prompt_embeds=inputs.get("prompt_embeds"),
            negative_prompt_embeds=inputs.get("negative_prompt_embeds"),
        )


def _own_seed(task_id: str) -> int:
    """The seed of a task that names none: from its id, so that a second attempt draws the same."""
    return int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:4])


def _refuse_unserved(request: GenerationRequest, spec: ModelSpec) -> None:
    """What the contract has and this model can't do."""
    faults = []
    if request.cross_attention_kwargs is not None and not spec.lora:
        what = "has no effect: no LoRA is loaded with this model; leave it out"
        faults.append(FieldError(where="cross_attention_kwargs", what=what, limit="null"))
    if request.preview_every and spec.safety_checker:
        what = "is not served by a model with a safety checker, which can't judge what is not done"
        faults.append(FieldError(where="preview_every", what=what, limit="0"))
    if faults:
        raise BadRequestError(*faults)
