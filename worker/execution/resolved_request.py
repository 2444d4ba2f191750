"""A delivery; its request with every default filled in; the engine's job for it."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from api_contracts.errors import FieldError, InvalidRequest
from api_contracts.names import DEFAULT_PRIORITY
from api_contracts.parse import parse_request
from api_contracts.pushes import PushKind
from api_contracts.request import is_traceparent
from worker.config import push_targets
from worker.engine.job import Job
from worker.errors import BadRequestError, TaskFailedError, UnknownModelError

if TYPE_CHECKING:
    from api_contracts.errors import TaskError
    from api_contracts.request import GenerationRequest, Limits
    from worker.config.models import ModelSpec
    from worker.config.settings import Settings

logger = logging.getLogger(__name__)

#: Fields that no image depends on and that may hold a token: they are written to no file. Nor is
#: the caller's span: the bytes of an image do not depend on whether somebody traces.
LEFT_OUT = {*(kind.value for kind in PushKind), "traceparent"}
#: Longest JSON of a refused request that its record stores, in characters.
MAX_REFUSED_CHARS = 4_000


@dataclass(frozen=True)
class Delivery:
    """The content of one message; its request is not yet validated."""

    task_id: str
    request: Any
    #: The queue that the message came from.
    queue: str = ""
    #: Of the message, whatever the request says.
    priority: int = DEFAULT_PRIORITY
    #: Unix time after which the task must not start: Celery's `expires`.
    expires_at_s: float | None = None
    #: What is wrong with the message, apart from its request.
    fault: FieldError | None = None
    #: `traceparent` of the message's headers, not yet validated.
    header_traceparent: str | None = None

    @property
    def traceparent(self) -> str:
        """The caller's span: the request's `traceparent`, else the header's; '' without either.

        A header that is malformed is ignored, as W3C asks; a field that is refuses the request.
        """
        field = self.request.get("traceparent") if isinstance(self.request, dict) else None
        given = (field, self.header_traceparent)
        return next(filter(is_traceparent, given), None) or ""

    def resolve(self, settings: Settings) -> ResolvedRequest | TaskError:
        """The resolved request, or the error with which the task fails."""
        if self.fault is not None:
            return BadRequestError(self.fault).error
        try:
            request = parse_request(self.request)
            if request.traceparent is None and self.traceparent:
                # Of the message alone, it would be lost where the reconciler sends another one.
                request = request.model_copy(update={"traceparent": self.traceparent})
            return ResolvedRequest.of(request, self.task_id, settings, self.priority)
        except InvalidRequest as error:
            return BadRequestError(*error.faults).error
        except TaskFailedError as error:
            return error.error
        except Exception as error:  # raised before the claim, its message would return endlessly
            logger.exception(
                "task %s fails: its request can't be checked because of a bug", self.task_id
            )
            return TaskFailedError(f"the request can't be checked: {type(error).__name__}").error

    @property
    def refused_json(self) -> str:
        """What the record of a refused task stores of its request.

        A request that is too long, or that Redis's JSON parser would refuse, is reduced to the
        fields that say where the final event is pushed, and the caller's span.
        """
        request = self.request
        if isinstance(request, dict) and request.get("traceparent") is None and self.traceparent:
            request = request | {"traceparent": self.traceparent}
        try:
            text = json.dumps(request)
            if isinstance(request, dict) and not _fits_record(text, request):
                kept = {kind.value for kind in PushKind} | {"traceparent"}
                given = {name: value for name, value in request.items() if name in kept}
                if len(pushes := json.dumps(given)) <= MAX_REFUSED_CHARS:
                    return pushes
        except (TypeError, RecursionError):  # a type that kombu decodes; nested too deep
            return repr(type(self.request))
        return text[:MAX_REFUSED_CHARS]


def _fits_record(text: str, request: dict[str, Any]) -> bool:
    """Whether a request is short enough and has no lone surrogate, which cjson refuses."""
    if len(text) > MAX_REFUSED_CHARS:
        return False
    try:
        json.dumps(request, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


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
        defaults = {
            name: value
            for name, value in spec.defaults.model_dump().items()
            if value is not None and name not in request.model_fields_set
        }
        wire = {"seed": _seed_from_id(task_id)} | defaults
        wire |= {name: value for name, value in request.to_wire().items() if value is not None}
        _refuse_unserved(request, spec)
        if refused := [*push_targets.faults(request, settings.reply_to, settings.webhook_hosts)]:
            raise BadRequestError(*refused)
        complete = parse_request(wire, settings.limits)
        return cls(task_id, request, complete, settings.limits, priority)

    @property
    def parameters(self) -> dict[str, Any]:
        """Every field as it was used, for the result and the manifest."""
        return self.complete.model_dump(mode="json", exclude=LEFT_OUT)

    @property
    def origin(self) -> dict[str, Any]:
        """The request as it was sent, for the image's text chunk."""
        wire = self.request.to_wire()
        return {name: value for name, value in wire.items() if name not in LEFT_OUT}

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
            max_images=self.limits.max_images,
            max_side_px=self.limits.max_side_px,
            seeds=tuple(seed) if isinstance(seed, list) else (seed or 0,),
            scheduler=request.scheduler,
            output_type=request.output_type,
            preview_every=request.preview_every,
            clip_skip=request.clip_skip,
            priority=self.priority,
            lora_scale=None if attention is None or attention.scale == 1 else attention.scale,
            latents=inputs.get("latents"),
            prompt_embeds=inputs.get("prompt_embeds"),
            negative_prompt_embeds=inputs.get("negative_prompt_embeds"),
        )


def _seed_from_id(task_id: str) -> int:
    """The seed of a request without one: derived from the id, so every attempt draws the same."""
    return int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:4])


def _refuse_unserved(request: GenerationRequest, spec: ModelSpec) -> None:
    """Refuse what the contract allows and this model can't do."""
    faults = []
    if request.cross_attention_kwargs is not None and not spec.lora:
        what = "has no effect: no LoRA is loaded with this model; leave it out"
        faults.append(FieldError(where="cross_attention_kwargs", what=what, limit="null"))
    if request.preview_every and spec.safety_checker:
        what = "is not served by a model with a safety checker, which can't judge what is not done"
        faults.append(FieldError(where="preview_every", what=what, limit="0"))
    if faults:
        raise BadRequestError(*faults)
