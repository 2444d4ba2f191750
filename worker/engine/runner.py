"""One job on the device: encode, denoise, decode. The only code that runs a network."""

from __future__ import annotations

import base64
import io
import logging
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import accelerate
import diffusers
import torch
import transformers

from api_contracts.errors import Fault
from worker.engine import schedulers, tensors
from worker.engine.job import JobResult, Picture, Step, Timing
from worker.errors import BadRequest, OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from PIL import Image

    from worker.engine.job import Control, Job
    from worker.engine.models import LoadedModel

logger = logging.getLogger(__name__)

VERSIONS = {
    "torch": torch.__version__,
    "diffusers": diffusers.__version__,
    "transformers": transformers.__version__,
    "accelerate": accelerate.__version__,
}
#: Longest side of a preview, in pixels.
PREVIEW_PX = 128


def run(model: LoadedModel, job: Job, control: Control, waited: tuple[float, float]) -> JobResult:
    """Make the job's pictures; `waited` is what it waited for the engine and for the build.

    Raises `JobStopped` at the first step boundary after `control` was asked to, `BadRequest` for
    what only the model can refuse, `OutOfMemory`. However it ends, the pipeline's attention
    processors and offload hooks are as they were, so that the next job finds it fresh.
    """
    pipe = model.pipeline
    own_scheduler = pipe.scheduler
    processors = dict(pipe.unet.attn_processors)
    try:
        name, pipe.scheduler = schedulers.make(job.scheduler, own_scheduler)
        schedulers.check_eta(job.eta, name)
        with torch.inference_mode():
            pictures, (encode_s, denoise_s, decode_s) = _make(pipe, job, control)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the device has not enough memory for {job.width or 'own'} x {job.height or 'own'} px;"
            " ask for a smaller picture or fewer images"
        ) from error
    finally:
        pipe.scheduler = own_scheduler
        pipe.unet.set_attn_processor(processors)
        pipe.maybe_free_model_hooks()
        if model.device != "cpu":
            torch.cuda.empty_cache()
    timing = Timing(*waited, encode_s, denoise_s, decode_s)
    return JobResult(pictures, timing, name, 1.0, VERSIONS)


def _make(pipe: Any, job: Job, control: Control) -> tuple[tuple[Picture, ...], list[float]]:  # noqa: ANN401  # a diffusers pipeline
    """The pictures, and the seconds of encoding, denoising and decoding."""
    marks = [time.perf_counter()]
    control.obey(0)
    embeds, negative_embeds = _encode(pipe, job)
    marks.append(time.perf_counter())
    seeds = _seeds(job, prompts=embeds.shape[0])
    latents = _denoise(pipe, job, control, seeds, embeds, negative_embeds)
    marks.append(time.perf_counter())
    pictures = tuple(_decode(pipe, job, seeds, latents))
    marks.append(time.perf_counter())
    return pictures, [end - begin for begin, end in pairwise(marks)]


def _encode(pipe: Any, job: Job) -> tuple[torch.Tensor, torch.Tensor | None]:  # noqa: ANN401  # a diffusers pipeline
    """Embeddings (prompts, tokens, width) of the prompts and, with guidance, of their opposites."""
    device, text = pipe._execution_device, pipe.text_encoder.config  # noqa: SLF001  # diffusers' own way to ask
    width = text.hidden_size
    embeds = tensors.read(job.prompt_embeds, "prompt_embeds", ("n", "tokens", width))
    negative = tensors.read(
        job.negative_prompt_embeds, "negative_prompt_embeds", ("n", "tokens", width)
    )
    if embeds is not None and negative is not None and embeds.shape != negative.shape:
        what = f"has shape {tuple(negative.shape)}"
        limit = f"that of prompt_embeds, {tuple(embeds.shape)}"
        raise BadRequest(Fault(where="negative_prompt_embeds", what=what, limit=limit))
    count = len(job.prompts) or (0 if embeds is None else embeds.shape[0])
    if len(job.negative_prompts) not in (0, 1, count):
        what = f"has {len(job.negative_prompts)} entries for {count} prompts"
        raise BadRequest(Fault(where="negative_prompt", what=what, limit="as many as prompts"))
    if negative is not None and negative.shape[0] != count:
        what = f"has {negative.shape[0]} rows for {count} prompts"
        raise BadRequest(Fault(where="negative_prompt_embeds", what=what, limit="as many"))
    negatives = list(job.negative_prompts or ("",))
    encoded, opposite = pipe.encode_prompt(
        list(job.prompts) or None,
        device,
        1,
        job.guidance_scale > 1,
        negatives * count if len(negatives) == 1 else negatives,
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
    )
    return encoded, opposite


def _seeds(job: Job, prompts: int) -> tuple[int, ...]:
    """The seed of each image; only here is known how many a file of embeddings asks for."""
    images = prompts * job.num_images_per_prompt
    if images > job.max_images:
        what = f"asks for {images} images: {prompts} rows x {job.num_images_per_prompt} each"
        raise BadRequest(Fault(where="prompt_embeds", what=what, limit=f"<= {job.max_images}"))
    if len(job.seeds) == images:
        return job.seeds
    if len(job.seeds) > 1:
        what = f"has {len(job.seeds)} entries for {images} images"
        raise BadRequest(Fault(where="seed", what=what, limit="one, or as many as images"))
    return tuple(job.seeds[0] + number for number in range(images))


def _denoise(
    pipe: Any,  # noqa: ANN401  # a diffusers pipeline
    job: Job,
    control: Control,
    seeds: tuple[int, ...],
    embeds: torch.Tensor,
    negative_embeds: torch.Tensor | None,
) -> torch.Tensor:
    """Latents (images, channels, height / f, width / f) after all steps, by diffusers' pipeline."""
    height, width = _size(pipe, job)
    factor, channels = pipe.vae_scale_factor, pipe.unet.config.in_channels
    shape = (len(seeds), channels, height // factor, width // factor)
    output = pipe(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative_embeds,
        height=height,
        width=width,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        sag_scale=job.sag_scale,
        num_images_per_prompt=job.num_images_per_prompt,
        eta=job.eta,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        latents=tensors.read(job.latents, "latents", shape),
        output_type="latent",
        callback=_callback(pipe, job, control),
        callback_steps=1,
    )
    latents: torch.Tensor = output.images
    return latents


def _callback(pipe: Any, job: Job, control: Control) -> Callable[[int, Any, torch.Tensor], None]:  # noqa: ANN401  # a diffusers pipeline
    """What diffusers calls after each step: it tells of the step and ends a stopped job."""
    done, began_s = 0, time.perf_counter()

    def after_step(_index: int, _timestep: Any, latents: torch.Tensor) -> None:  # noqa: ANN401  # diffusers' signature
        nonlocal done
        done += 1
        wanted = job.preview_every and done % job.preview_every == 0
        preview = _preview(pipe, latents) if wanted else None
        left = max(0, job.num_inference_steps - done)
        eta_s = round((time.perf_counter() - began_s) / done * left, 3)
        control.on_step(Step(done, job.num_inference_steps, eta_s, preview))
        control.obey(done)

    return after_step


def _decode(
    pipe: Any,  # noqa: ANN401  # a diffusers pipeline
    job: Job,
    seeds: tuple[int, ...],
    latents: torch.Tensor,
) -> Iterator[Picture]:
    """Latents to pictures, looked at by the safety checker where the model has one."""
    height, width = _size(pipe, job)
    if job.output_type == "latent":
        for seed, each in zip(seeds, latents.float().cpu(), strict=True):
            yield Picture(each, width, height, seed, None)
        return
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    decoded, flags = pipe.run_safety_checker(decoded, pipe._execution_device, latents.dtype)  # noqa: SLF001  # diffusers' own way to ask
    images = pipe.image_processor.postprocess(
        decoded,
        output_type="np" if job.output_type == "npy" else "pil",
        do_denormalize=[not flag for flag in flags] if flags is not None else None,
    )
    for number, (seed, image) in enumerate(zip(seeds, images, strict=True)):
        yield Picture(image, width, height, seed, None if flags is None else bool(flags[number]))


def _preview(pipe: Any, latents: torch.Tensor) -> str:  # noqa: ANN401  # a diffusers pipeline
    """A small JPEG of the first image so far, as a data URL."""
    decoded = pipe.vae.decode(latents[:1] / pipe.vae.config.scaling_factor, return_dict=False)[0]
    image: Image.Image = pipe.image_processor.postprocess(decoded, output_type="pil")[0]
    image.thumbnail((PREVIEW_PX, PREVIEW_PX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _size(pipe: Any, job: Job) -> tuple[int, int]:  # noqa: ANN401  # a diffusers pipeline
    """Height and width in pixels, the model's own where the job says nothing."""
    own = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return job.height or own, job.width or own
