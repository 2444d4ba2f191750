"""A job that a model has checked, and the lanes that it becomes once its texts are encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from api_contracts.errors import FieldError
from worker.engine import prompts, safetensors_io, samplers
from worker.engine.batch_scheduler import Bucket
from worker.engine.image_state import ImageState
from worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.engine.job import Job


@dataclass(frozen=True)
class PreparedJob:
    """A job that is checked, before its texts are encoded."""

    job: Job
    wording: prompts.PromptInputs
    seeds: tuple[int, ...]
    #: One for each picture.
    samplings: tuple[samplers.SamplerState, ...]
    #: (pictures, channels, height, width), where the job brings them.
    latents: torch.Tensor | None
    #: Of the latents.
    height: int
    width: int
    truncated: tuple[str, ...]


def check(pipe: Any, job: Job) -> PreparedJob:  # noqa: ANN401  # a diffusers pipeline
    """Everything about a job that only the model knows; raises `TaskFailedError`."""
    wording = prompts.check(pipe, job)
    seeds = _seeds(job, wording.count)
    height, width = _size(pipe, job)
    samplings = tuple(
        samplers.make(job.scheduler, pipe.scheduler, job.num_inference_steps) for _ in seeds
    )
    samplers.check_eta(job.eta, samplings[0].name)
    factor = pipe.vae_scale_factor
    shape = (len(seeds), pipe.unet.config.in_channels, height // factor, width // factor)
    latents = safetensors_io.read(job.latents, "latents", shape)
    if latents is not None and not torch.isfinite(latents.to(pipe.unet.dtype)).all():
        what = f"holds values that {pipe.unet.dtype} does not reach"
        raise BadRequestError(FieldError(where="latents", what=what, limit=str(pipe.unet.dtype)))
    lost = prompts.truncated(pipe, job)
    return PreparedJob(job, wording, seeds, samplings, latents, shape[2], shape[3], lost)


def lanes(
    pipe: Any,  # noqa: ANN401  # a diffusers pipeline
    draft: PreparedJob,
    encoded: dict[prompts.EncoderInput, torch.Tensor],
) -> list[ImageState]:
    """One lane for each picture, prompt by prompt, its first latents drawn as diffusers does."""
    wording, job = draft.wording, draft.job
    device, dtype = pipe._execution_device, pipe.unet.dtype  # noqa: SLF001  # diffusers' own way to ask
    embeds = _rows(wording.embeds, wording.texts, encoded)
    opposite = None
    if wording.negative_texts is not None:
        opposite = _rows(wording.negative_embeds, wording.negative_texts, encoded)
    tokens = embeds[0].shape[0]
    bucket = Bucket(job.model, draft.height, draft.width, tokens, job.lora_scale)
    shape = (1, pipe.unet.config.in_channels, draft.height, draft.width)
    made = []
    for number, (seed, sampling) in enumerate(zip(draft.seeds, draft.samplings, strict=True)):
        generator = torch.Generator("cpu").manual_seed(seed)
        if draft.latents is None:
            latents = randn_tensor(shape, generator, device, dtype)
        else:
            latents = draft.latents[number : number + 1].to(device, dtype)
        prompt = number // job.num_images_per_prompt
        made.append(
            ImageState(
                job=job,
                seed=seed,
                bucket=bucket,
                sampling=sampling,
                generator=generator,
                latents=latents * sampling.scheduler.init_noise_sigma,
                embeds=embeds[prompt].to(device, dtype),
                negative=None if opposite is None else opposite[prompt].to(device, dtype),
            )
        )
    return made


def own_size(pipe: Any) -> tuple[int, int]:  # noqa: ANN401  # a diffusers pipeline
    """Height and width of the latents that the model was trained on."""
    size = pipe.unet.config.sample_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _size(pipe: Any, job: Job) -> tuple[int, int]:  # noqa: ANN401  # a diffusers pipeline
    """Height and width in pixels, the model's own where the job says nothing."""
    factor, own = pipe.vae_scale_factor, own_size(pipe)
    for where, given in (("height", job.height), ("width", job.width)):
        if given is not None and given % factor:
            what = f"is {given}, which this model's autoencoder can't divide"
            raise BadRequestError(FieldError(where=where, what=what, limit=f"multiple of {factor}"))
    return job.height or own[0] * factor, job.width or own[1] * factor


def _seeds(job: Job, prompts_count: int) -> tuple[int, ...]:
    """The seed of each image; only here is known how many a file of embeddings asks for."""
    images = prompts_count * job.num_images_per_prompt
    if images > job.max_images:
        what = f"asks for {images} images: {prompts_count} rows x {job.num_images_per_prompt} each"
        raise BadRequestError(
            FieldError(where="prompt_embeds", what=what, limit=f"<= {job.max_images}")
        )
    if len(job.seeds) == images:
        return job.seeds
    if len(job.seeds) > 1:
        what = f"has {len(job.seeds)} entries for {images} images"
        raise BadRequestError(
            FieldError(where="seed", what=what, limit="one, or as many as images")
        )
    return tuple(job.seeds[0] + number for number in range(images))


def _rows(
    given: torch.Tensor | None,
    texts: Sequence[prompts.EncoderInput],
    encoded: dict[prompts.EncoderInput, torch.Tensor],
) -> list[torch.Tensor]:
    return [encoded[text] for text in texts] if given is None else list(given)
