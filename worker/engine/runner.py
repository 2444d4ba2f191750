"""One job on the device: encode, denoise, decode. The only code that runs a network."""

from __future__ import annotations

import base64
import io
import logging
import os
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import accelerate
import diffusers
import torch
import transformers

from api_contracts.errors import Fault
from worker.engine import prompts, schedulers, tensors
from worker.engine.job import JobResult, Picture, Step, Timing
from worker.errors import BadRequest, OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from PIL import Image

    from worker.engine.job import Control, Job
    from worker.engine.models import LoadedModel
    from worker.engine.prompts import Encoded

logger = logging.getLogger(__name__)

VERSIONS = {
    "torch": torch.__version__,
    "diffusers": diffusers.__version__,
    "transformers": transformers.__version__,
    "accelerate": accelerate.__version__,
}
#: Exit status of a process whose device fails.
DEVICE_FAILED = 70
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
            pictures, seconds, truncated = _make(pipe, job, control)
    except torch.AcceleratorError:
        # Every later call of this process would fail too, and end a task each: leave the task and
        # its message as they are, for another process.
        logger.critical("the device fails; this process ends", exc_info=True)
        logging.shutdown()
        os._exit(DEVICE_FAILED)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the device has not enough memory for {job.width or 'own'} x {job.height or 'own'} px;"
            " ask for a smaller picture or fewer images"
        ) from error
    finally:
        pipe.scheduler = own_scheduler
        pipe.unet.set_attn_processor(processors)
        pipe.maybe_free_model_hooks()
    timing = Timing(*waited, *seconds)
    return JobResult(pictures, timing, name, 1.0, VERSIONS, truncated)


def free_memory(device: str) -> None:
    """Give the memory that no tensor holds back to the device, for whoever shares it."""
    if device != "cpu":
        torch.cuda.empty_cache()


def _make(
    pipe: Any,  # noqa: ANN401  # a diffusers pipeline
    job: Job,
    control: Control,
) -> tuple[tuple[Picture, ...], list[float], tuple[str, ...]]:
    """The pictures; the seconds of encoding, denoising and decoding; what had no effect."""
    marks = [time.perf_counter()]
    control.obey(0)
    encoded = prompts.encode(pipe, job)
    marks.append(time.perf_counter())
    seeds = _seeds(job, rows=encoded.embeds.shape[0])
    latents = _denoise(pipe, job, control, seeds, encoded)
    marks.append(time.perf_counter())
    pictures = tuple(_decode(pipe, job, seeds, latents))
    marks.append(time.perf_counter())
    return pictures, [end - begin for begin, end in pairwise(marks)], encoded.truncated


def _seeds(job: Job, rows: int) -> tuple[int, ...]:
    """The seed of each image; only here is known how many a file of embeddings asks for."""
    images = rows * job.num_images_per_prompt
    if images > job.max_images:
        what = f"asks for {images} images: {rows} rows x {job.num_images_per_prompt} each"
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
    encoded: Encoded,
) -> torch.Tensor:
    """Latents (images, channels, height / f, width / f) after all steps, by diffusers' pipeline."""
    height, width = _size(pipe, job)
    factor, channels = pipe.vae_scale_factor, pipe.unet.config.in_channels
    shape = (len(seeds), channels, height // factor, width // factor)
    output = pipe(
        prompt_embeds=encoded.embeds,
        negative_prompt_embeds=encoded.negative,
        height=height,
        width=width,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        sag_scale=job.sag_scale,
        num_images_per_prompt=job.num_images_per_prompt,
        eta=job.eta,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        latents=_given(job, pipe.unet.dtype, shape),
        output_type="latent",
        callback=_callback(pipe, job, control),
        callback_steps=1,
    )
    latents: torch.Tensor = output.images
    return latents


def _given(job: Job, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor | None:
    """The job's own latents, in the model's precision, which diffusers does not see to."""
    latents = tensors.read(job.latents, "latents", shape)
    return None if latents is None else latents.to(dtype)


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
