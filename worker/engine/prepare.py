"""Validates a job against its model, and makes the initial state of its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from api_contracts.errors import FieldError
from worker.engine import initial_latents, safetensors_io
from worker.engine.batch_scheduler import Bucket
from worker.engine.device import device_memory
from worker.engine.families.conditioning import TEXT, check_range, encoded, in_precision
from worker.engine.image_state import ImageState
from worker.engine.jobs.job import refusal
from worker.engine.pipeline import dtype_of, native_size
from worker.engine.sampling import host_noise, samplers
from worker.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.engine.families.conditioning import Conditioning, EncoderInput, PromptInputs
    from worker.engine.jobs.job import Job
    from worker.engine.loaded_model import LoadedModel
    from worker.engine.pipeline import Pipeline
    from worker.engine.sampling.sampler_state import SamplerState


@dataclass(frozen=True)
class PreparedJob:
    """A validated job, before its prompts are encoded."""

    job: Job
    prompt_inputs: PromptInputs
    #: One for each image, as `samplers`.
    seeds: tuple[int, ...]
    samplers: tuple[SamplerState, ...]
    #: (images, channels, height, width), if the job contains them.
    latents: torch.Tensor | None
    #: Of the latents.
    height: int
    width: int
    truncated: tuple[str, ...]


def check(model: LoadedModel, job: Job) -> PreparedJob:
    """Validate everything that depends on the model; raises `TaskFailedError`."""
    pipe = model.pipeline
    if model.takes_mask:
        _need_pictures(job)
    prompt_inputs = model.family.check(pipe, job)
    seeds = _seeds(job, len(prompt_inputs.positive))
    height, width = _size_px(pipe, job, model.family.multiple_px(pipe))
    own = tuple(
        samplers.make(
            job.scheduler,
            pipe.scheduler,
            job.num_inference_steps,
            None if job.image is None else job.strength,
            on_gpu=model.device != "cpu",
        )
        for _ in seeds
    )
    samplers.check_eta(job.eta, own[0].name)
    factor, dtype = pipe.vae_scale_factor, model.unet_dtype
    shape = (len(seeds), model.latent_channels, height // factor, width // factor)
    latents = safetensors_io.read(job.latents, "latents", shape)
    if latents is not None:
        sigma = own[0].scheduler.init_noise_sigma
        check_range("latents", latents.to(dtype) * sigma, dtype)
    truncated = model.family.truncated(pipe, job)
    return PreparedJob(job, prompt_inputs, seeds, own, latents, shape[2], shape[3], truncated)


def _need_pictures(job: Job) -> None:
    """Refuse a job for inpainting that lacks a picture or its mask."""
    what = "is missing: the model is made for inpainting"
    faults = [
        FieldError(where=where, what=what, limit="a picture")
        for where in ("image", "mask_image")
        if getattr(job, where) is None
    ]
    if faults:
        raise BadRequestError(*faults)


def image_states(
    model: LoadedModel,
    prepared: PreparedJob,
    known: Mapping[EncoderInput, Conditioning],
) -> list[ImageState]:
    """One state for each image, prompt by prompt; initial latents are drawn as diffusers does.

    `known` has the conditioning of all texts. Calls the autoencoder for a job with a picture.
    """
    job, dtype = prepared.job, dtype_of(model.pipeline)
    positives, negatives = _conditioning(model, prepared, known)
    tokens = positives[0][TEXT].shape[0] if TEXT in positives[0] else 0
    scale = job.lora_scale if model.has_lora else None
    bucket = Bucket(job.model, prepared.height, prepared.width, tokens, scale)
    source, images = initial_latents.encode(model, job), []
    for index, (seed, sampler) in enumerate(zip(prepared.seeds, prepared.samplers, strict=True)):
        generator = torch.Generator("cpu").manual_seed(seed)
        if source is None:
            begun = _from_noise(model, prepared, index, generator)
        else:
            begun = initial_latents.StartDraw(
                model, source, sampler, generator, dtype, is_all_noise=job.strength == 1
            ).start()
        prompt = index // job.num_images_per_prompt
        images.append(
            ImageState(
                job=job,
                seed=seed,
                bucket=bucket,
                sampler=sampler,
                generator=generator,
                unet_dtype=str(model.unet_dtype).removeprefix("torch."),
                latents=begun.latents,
                picture=begun.picture,
                blend=begun.blend,
                channels=begun.channels,
                conditioning=positives[prompt],
                negative=None if negatives is None else negatives[prompt],
            )
        )
    return images


def _conditioning(
    model: LoadedModel, prepared: PreparedJob, known: Mapping[EncoderInput, Conditioning]
) -> tuple[list[Conditioning], list[Conditioning] | None]:
    """The rows' conditioning of each prompt on the device, and without the prompt."""
    inputs, pipe = prepared.prompt_inputs, model.pipeline
    device, dtype = torch.device(model.device), dtype_of(pipe)
    sides_px = (side * pipe.vae_scale_factor for side in (prepared.height, prepared.width))
    of_size = model.family.of_size(pipe, prepared.job, *sides_px)

    def placed(each: EncoderInput | Conditioning) -> Conditioning:
        found = encoded(each, known) | of_size
        return {
            name: device_memory.to_device(in_precision(tensor, dtype), device)
            for name, tensor in found.items()
        }

    negatives = None if inputs.negative is None else [placed(each) for each in inputs.negative]
    return [placed(each) for each in inputs.positive], negatives


def _from_noise(
    model: LoadedModel, prepared: PreparedJob, index: int, generator: torch.Generator
) -> initial_latents.Start:
    """The start of one image from noise: drawn, or the job's own latents."""
    device, dtype = torch.device(model.device), dtype_of(model.pipeline)
    if prepared.latents is None:
        shape = (1, model.latent_channels, prepared.height, prepared.width)
        noise = host_noise.randn_tensor(shape, generator, device, dtype)
    else:
        given = prepared.latents[index : index + 1].to(dtype)
        noise = device_memory.to_device(given, device)
    return initial_latents.Start(noise * prepared.samplers[index].scheduler.init_noise_sigma)


def _size_px(pipe: Pipeline, job: Job, multiple_px: int) -> tuple[int, int]:
    """Height and width in pixels, the model's own where the job has none."""
    factor, (height, width) = pipe.vae_scale_factor, native_size(pipe)
    for where, given in (("height", job.height), ("width", job.width)):
        if given is not None and given % multiple_px:
            what = f"is {given}, which this model's networks can't divide"
            raise refusal(where, what, f"multiple of {multiple_px}")
    size = job.height or height * factor, job.width or width * factor
    for where, side in zip(("height", "width"), size, strict=True):
        if side > job.max_side_px:  # the model's own: the request's was checked before
            what = f"is the model's own {side} px unless given"
            raise refusal(where, what, f"<= {job.max_side_px}")
    return size


def _seeds(job: Job, prompts_count: int) -> tuple[int, ...]:
    """The seed of each image; the number of prompts may come from a file of embeddings."""
    images = prompts_count * job.num_images_per_prompt
    if images > job.max_images:
        what = f"asks for {images} images: {prompts_count} rows x {job.num_images_per_prompt} each"
        raise refusal("prompt_embeds", what, f"<= {job.max_images}")
    if len(job.seeds) == images:
        return job.seeds
    if len(job.seeds) > 1:
        what = f"has {len(job.seeds)} entries for {images} images"
        raise refusal("seed", what, "one, or as many as images")
    return tuple(job.seeds[0] + index for index in range(images))
