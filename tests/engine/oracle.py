"""The latents of one request alone, by diffusers' pipelines, or by a loop of its model's kind.

It knows nothing of the engine but the fields of a job. Latents are (images, channels, h, w) in
float32.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from tests.engine import pixel_loop, plain_loop
from tests.engine.noise import level_of, training_levels
from tests.engine.plain_guidance import Pipeline
from tests.engine.requests_of import (
    SCHEDULERS,
    generators,
    image_of,
    mask_image_of,
    scheduler_of,
    tensor,
    texts,
)  # fmt: skip

if TYPE_CHECKING:
    from worker.engine.job import Job

__all__ = [
    "SCHEDULERS", "UPSTREAM", "Pipeline", "alone", "crowded", "plain", "scheduler_of",
    "threshold_margin", "upstream", "wrapped",
]  # fmt: skip

#: Where upstream is right: whole timesteps, and the noise level of each is that of its sigma.
UPSTREAM = frozenset(
    {"ddim", "ddpm", "pndm", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "unipc", "deis", "lcm", "tcd"}
)


def alone(pipe: Pipeline, job: Job, layer: str | None = None) -> torch.Tensor:
    """Latents, or pixels, by the plain loop of the model's kind; SAG reads `layer`."""
    loop = pixel_loop.alone if _is_of_pixels(pipe) else plain_loop.alone
    return loop(pipe, job) if layer is None else loop(pipe, job, layer)


def threshold_margin(pipe: Pipeline, job: Job) -> float:
    """Least distance of a column sum from the mask's threshold in that loop's evaluations."""
    if _is_of_pixels(pipe):
        return pixel_loop.threshold_margin(pipe, job)
    return plain_loop.threshold_margin(pipe, job)


def _is_of_pixels(pipe: Pipeline) -> bool:
    return hasattr(pipe, "null_class")


def upstream(pipe: Pipeline, job: Job) -> torch.Tensor:
    """Latents by `StableDiffusionSAGPipeline`; see `UPSTREAM` for where they are right."""
    return _call(diffusers.StableDiffusionSAGPipeline, pipe, job, sag_scale=job.sag_scale)


def plain(pipe: Pipeline, job: Job) -> torch.Tensor:
    """Latents by the maintained pipeline, which has no Self-Attention Guidance.

    A job with a picture has one image.
    """
    assert job.sag_scale == 0
    more: dict[str, Any] = {}
    if job.image is not None:
        more = {"image": image_of(job), "strength": job.strength}
    if job.mask_image is not None:
        more["mask_image"] = mask_image_of(job)
    return _call(_kind(pipe, job), pipe, job, **more)


def _kind(pipe: Pipeline, job: Job) -> Any:
    """The class of diffusers' pipelines for a job."""
    xl = "XL" if hasattr(pipe, "text_encoder_2") else ""
    what = "" if job.image is None else "Img2Img"
    if job.mask_image is not None:
        what = "Inpaint"
    return getattr(diffusers, f"StableDiffusion{xl}{what}Pipeline")


def wrapped(pipe: Pipeline, prediction_type: str, like: Job | None = None) -> Pipeline:
    """A copy of an epsilon model whose UNet's output is written as `v_prediction` or `sample`.

    A UNet gets only the timestep. Its noise level is interpolated linearly in log sigma; `like`
    gives the levels of that job's scheduler instead, whose timesteps may be rounded or clipped.
    """
    unet = copy.deepcopy(pipe.unet)
    epsilon = unet.forward
    levels = training_levels(pipe) if like is None else _levels_of(pipe, like)

    def forward(z: torch.Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        as_tuple = not kwargs.pop("return_dict", True)
        eps = epsilon(z, timestep, *args, return_dict=False, **kwargs)[0]
        sigma = np.exp(np.interp(np.atleast_1d(torch.as_tensor(timestep).numpy()), *levels))
        a = torch.from_numpy((sigma**2 + 1) ** -0.5).to(z.dtype)[:, None, None, None]
        s = torch.from_numpy((sigma**-2 + 1) ** -0.5).to(z.dtype)[:, None, None, None]
        output = (eps - s * z) / a if prediction_type == "v_prediction" else (z - s * eps) / a
        return (output,) if as_tuple else UNet2DConditionOutput(output)

    unet.forward = forward
    own = pipe.scheduler
    scheduler = type(own).from_config(own.config, prediction_type=prediction_type)
    return _pipeline(type(pipe), pipe, unet=unet, scheduler=scheduler)


def crowded(pipe: Pipeline, rows: int = 3) -> Pipeline:
    """A copy whose UNet computes each row several times in one call: other kernels, other rounding.

    Its latents differ from those of `pipe` by rounding alone.
    """
    unet = copy.deepcopy(pipe.unet)
    usual = unet.forward

    def repeated(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: repeated(each) for name, each in value.items()}
        return value.repeat(rows, *[1] * (value.dim() - 1)) if torch.is_tensor(value) else value

    def forward(z: torch.Tensor, timestep: Any, **kwargs: Any) -> Any:
        kwargs = repeated(kwargs) | {"return_dict": False}
        output = usual(repeated(z), timestep, **kwargs)[0]
        return UNet2DConditionOutput(output[: len(z)])

    unet.forward = forward
    return _pipeline(type(pipe), pipe, unet=unet)


def _levels_of(pipe: Pipeline, job: Job) -> tuple[np.ndarray, np.ndarray]:
    """The times that a job's scheduler tells the UNet, rising, and log sigma of each."""
    scheduler = scheduler_of(pipe, job)
    levels = [level_of(pipe, scheduler, number) for number in range(len(scheduler.timesteps))]
    table = sorted({float(at.timestep): np.log(at.s / max(at.a, 1e-8)) for at in levels}.items())
    times, log_sigmas = np.array(table).T
    return times, log_sigmas


def _call(kind: Any, pipe: Pipeline, job: Job, **more: Any) -> torch.Tensor:
    """Latents by `kind`'s own call; whatever happens, the UNet is as it was."""
    processors = dict(pipe.unet.attn_processors)
    given = texts(job)
    rows = len(job.prompts) or len(given["prompt_embeds"])
    given |= {
        "latents": tensor(job.latents),
        "height": job.height,
        "width": job.width,
        "num_inference_steps": job.num_inference_steps,
        "guidance_scale": job.guidance_scale,
        "guidance_rescale": job.guidance_rescale,
        "eta": job.eta,
        "generator": generators(job, rows * job.num_images_per_prompt),
        "original_size": job.original_size,
        "crops_coords_top_left": job.crops_coords_top_left or (0, 0),
        "target_size": job.target_size,
        "output_type": "latent",
    }
    takes = inspect.signature(kind.__call__).parameters
    given = {name: value for name, value in given.items() if name in takes}
    try:
        latents: torch.Tensor = _pipeline(kind, pipe, scheduler=scheduler_of(pipe, job))(
            **given, **more
        ).images
    finally:
        pipe.unet.set_attn_processor(processors)
    return latents


def _pipeline(kind: Any, pipe: Pipeline, **changes: Any) -> Pipeline:
    """A pipeline of another kind, or of other parts, beside `pipe`."""
    options: dict[str, Any] = {
        "requires_safety_checker": False,
        "add_watermarker": False,
        "null_class": getattr(pipe, "null_class", None),
        "force_zeros_for_empty_prompt": pipe.config.get("force_zeros_for_empty_prompt", True),
    }
    takes = inspect.signature(kind.__init__).parameters
    options = {name: value for name, value in options.items() if name in takes}
    made = kind(**(pipe.components | changes), **options)
    made.set_progress_bar_config(disable=True)
    return made


def one_image(job: Job, index: int) -> Job:
    """The job of one of a job's images alone."""
    prompt = index // job.num_images_per_prompt
    images = len(job.prompts) * job.num_images_per_prompt
    seed = job.seeds[index] if len(job.seeds) == images else job.seeds[0] + index

    def at(values: tuple[str, ...]) -> tuple[str, ...]:
        return values[prompt : prompt + 1] if len(values) > 1 else values

    return replace(
        job,
        prompts=job.prompts[prompt : prompt + 1],
        prompts_2=at(job.prompts_2),
        negative_prompts=at(job.negative_prompts),
        negative_prompts_2=at(job.negative_prompts_2),
        num_images_per_prompt=1,
        seeds=(seed,),
    )
