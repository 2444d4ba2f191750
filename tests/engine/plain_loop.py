"""The latents of one request alone, by the plainest possible loop: one image and one row at a time.

It knows nothing of the engine but the fields of a job. Latents are (images, channels, h, w) in
float32. The equations of guidance are in `plain_guidance`. Pictures and masks are prepared, encoded
and noised by diffusers' own parts, in the order of its pipelines.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch.nn import functional

from tests.engine.noise import Level, level_of
from tests.engine.plain_guidance import Network, Pipeline, Row, guided_x0, margins
from tests.engine.requests_of import (
    encoder_of,
    generators,
    mask_of,
    pixels_of,
    scheduler_of,
    tensor,
    texts,
    time_ids,
)  # fmt: skip

if TYPE_CHECKING:
    from worker.engine.job import Job

MID_BLOCK = "mid_block.attentions.0.transformer_blocks.0.attn1"


@dataclass
class _Image:
    """One image while it is denoised."""

    x: torch.Tensor
    #: Evaluations of the scheduler that are left out.
    skipped: int = 0
    #: Inputs of a UNet for inpainting, beside the latents.
    channels: torch.Tensor | None = None
    #: Where the picture is kept: mask, picture and noise.
    kept: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None


def alone(pipe: Pipeline, job: Job, layer: str = MID_BLOCK) -> torch.Tensor:
    """Latents by the plain loop; SAG listens to the self-attention `layer`."""
    with torch.no_grad():
        rows = _rows(pipe, job)
        given = tensor(job.latents)
        starts = [None] * len(rows) if given is None else given.split(1)
        drawn = zip(generators(job, len(rows)), starts, rows, strict=True)
        return torch.cat([_image(pipe, job, layer, *each) for each in drawn])


def threshold_margin(pipe: Pipeline, job: Job) -> float:
    """Least distance of a column sum from the mask's threshold in the loop's evaluations."""
    margins.clear()
    alone(pipe, job)
    return min(margins, default=float("inf"))


def _rows(pipe: Pipeline, job: Job) -> list[tuple[Row, Row]]:
    """For each image the UNet's arguments without and with the prompt."""
    guided = job.guidance_scale > 1
    given = inspect.signature(pipe.encode_prompt).parameters
    wanted = {name: value for name, value in texts(job).items() if name in given}
    encoded = pipe.encode_prompt(
        device=torch.device("cpu"), do_classifier_free_guidance=guided, **wanted
    )
    prompts, opposites = encoded[0], encoded[1] if guided else encoded[0]
    made = [
        [{"encoder_hidden_states": each} for each in rows.split(1)] for rows in (opposites, prompts)
    ]
    if len(encoded) > 2:  # Stable Diffusion XL: pooled embeddings, too
        pooled = (encoded[3] if guided else encoded[2], encoded[2])
        sizes = time_ids(pipe, job)
        for rows, each in zip(made, pooled, strict=True):
            for row, one in zip(rows, each.split(1), strict=True):
                row["added_cond_kwargs"] = {"text_embeds": one, "time_ids": sizes}
    return list(zip(*made, strict=True))


def _image(
    pipe: Pipeline,
    job: Job,
    layer: str,
    generator: torch.Generator,
    start: torch.Tensor | None,
    rows: tuple[Row, Row],
) -> torch.Tensor:
    """Latents (1, channels, h, w) of one image, from its noise or a `start` of the job's own."""
    scheduler = scheduler_of(pipe, job)
    image = _begun(pipe, job, scheduler, generator, start)
    takes = inspect.signature(scheduler.step).parameters
    extra = {"eta": job.eta, "generator": generator}
    extra = {name: value for name, value in extra.items() if name in takes}
    times = scheduler.timesteps[image.skipped :]
    steps = job.num_inference_steps - image.skipped // scheduler.order
    warmup = len(times) - steps * scheduler.order
    done = 0
    for number, t in enumerate(times):
        level = level_of(pipe, scheduler, image.skipped + number)
        # In fp32 the way to x0 and back would lose more than the engine does.
        z = scheduler.scale_model_input(image.x, t).double()
        if isinstance(scheduler, diffusers.IPNDMScheduler) and level.a < 1e-6:
            output = torch.zeros_like(z)  # it is multiplied by `a`, which is 0 at the first step
        else:
            acts = int(job.sag_start * steps) <= done < int(job.sag_stop * steps)
            x0 = guided_x0(Network(pipe, image.channels, level, layer), job, z, rows, acts=acts)
            output = _for_step(scheduler, x0, z, level)
        image.x = scheduler.step(output.float(), t, image.x, **extra).prev_sample
        if image.kept is not None:
            image.x = _kept(scheduler, image, times[number + 1 : number + 2])
        done += number + 1 > warmup and (number + 1) % scheduler.order == 0
    return image.x


def _begun(
    pipe: Pipeline,
    job: Job,
    scheduler: Any,
    generator: torch.Generator,
    start: torch.Tensor | None,
) -> _Image:
    """What is denoised: noise, or a picture to which noise was added."""
    factor, channels = pipe.vae_scale_factor, pipe.vae.config.latent_channels
    if job.image is None:
        native = pipe.unet.config.sample_size
        sides = [side // factor if side else native for side in (job.height, job.width)]
        if start is None:
            start = torch.randn((1, channels, *sides), generator=generator)
        return _Image(start * scheduler.init_noise_sigma)
    kept_steps = min(int(job.num_inference_steps * job.strength), job.num_inference_steps)
    skipped = (job.num_inference_steps - kept_steps) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    first = scheduler.timesteps[skipped : skipped + 1]
    pixels, mask, encode = pixels_of(pipe, job), mask_of(pipe, job), encoder_of(pipe)
    knows_mask = pipe.unet.config.in_channels > channels
    is_noise = mask is not None and job.strength == 1
    picture = None if is_noise and knows_mask else encode(pixels, generator)
    size = (1, channels, *(side // factor for side in pixels.shape[-2:]))
    noise = torch.randn(size, generator=generator)
    if is_noise:
        image = _Image(noise * scheduler.init_noise_sigma, skipped)
    else:
        image = _Image(scheduler.add_noise(picture, noise, first), skipped)
    if mask is not None:
        masked = encode(pixels * (mask < 0.5), generator)
        small = functional.interpolate(mask, size[-2:])
        if knows_mask:
            image.channels = torch.cat([small, masked], dim=1)
        elif picture is not None:
            image.kept = small, picture, noise
    return image


def _kept(scheduler: Any, image: _Image, following: torch.Tensor) -> torch.Tensor:
    """The latents with the picture put back outside of the mask, noised for the next timestep."""
    assert image.kept is not None
    mask, picture, noise = image.kept
    if len(following):
        picture = scheduler.add_noise(picture, noise, following)
    return (1 - mask) * picture + mask * image.x


def _for_step(scheduler: Any, x0: torch.Tensor, z: torch.Tensor, level: Level) -> torch.Tensor:
    """The output in the scheduler's prediction type; IPNDM always takes velocity."""
    ipndm = isinstance(scheduler, diffusers.IPNDMScheduler)
    kind = "v_prediction" if ipndm else scheduler.config.prediction_type
    a, s = level.a, level.s
    return {"epsilon": (z - a * x0) / s, "v_prediction": (a * z - x0) / s, "sample": x0}[kind]
