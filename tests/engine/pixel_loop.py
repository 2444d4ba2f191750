"""The pixels of one request alone, by the plainest loop over a UNet of pixels: a row at a time.

As `plain_loop`, of which it uses nothing: the equations are those of Self-Attention Guidance in x0
form, in float64 around the UNet's float32. It knows nothing of the engine but the fields of a job.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch.nn import functional

from tests.engine.noise import level_of
from tests.engine.requests_of import generators, scheduler_of, tensor

if TYPE_CHECKING:
    from tests.engine.noise import Level
    from worker.engine.jobs.job import Job

MID_BLOCK = "mid_block.attentions.0"
#: Of the authors' kernel, 31 x 31.
RADIUS = 15
#: Of each evaluation since `threshold_margin` began.
_margins: list[float] = []


def alone(pipe: Any, job: Job, layer: str = MID_BLOCK) -> torch.Tensor:
    """Pixels (images, channels, h, w) in -1 … 1; SAG reads the self-attention `layer`."""
    labels = job.class_labels or (pipe.null_class,)
    of_image = [label for label in labels for _ in range(job.num_images_per_prompt)]
    given = tensor(job.latents)
    starts = [None] * len(of_image) if given is None else given.split(1)
    drawn = zip(generators(job, len(of_image)), of_image, starts, strict=True)
    with torch.no_grad():
        return torch.cat([_image(pipe, job, layer, *each) for each in drawn])


def threshold_margin(pipe: Any, job: Job) -> float:
    """Least distance of a column sum from the mask's threshold in the loop's evaluations."""
    _margins.clear()
    alone(pipe, job)
    return min(_margins, default=float("inf"))


def _image(
    pipe: Any,
    job: Job,
    layer: str,
    generator: torch.Generator,
    label: int | None,
    start: torch.Tensor | None,
) -> torch.Tensor:
    scheduler, config = scheduler_of(pipe, job), pipe.unet.config
    sides = [side or config.sample_size for side in (job.height, job.width)]
    if start is None:
        start = torch.randn((1, config.in_channels, *sides), generator=generator)
    x = start * scheduler.init_noise_sigma
    takes = inspect.signature(scheduler.step).parameters
    extra = {"eta": job.eta, "generator": generator}
    extra = {name: value for name, value in extra.items() if name in takes}
    order, done = scheduler.order, 0
    warmup = len(scheduler.timesteps) - job.num_inference_steps * order
    for number, t in enumerate(scheduler.timesteps):
        level = level_of(pipe, scheduler, number)
        z = scheduler.scale_model_input(x, t).double()
        steps = job.num_inference_steps
        acts = job.sag_scale > 0 and int(job.sag_start * steps) <= done < int(job.sag_stop * steps)
        if isinstance(scheduler, diffusers.IPNDMScheduler) and level.a < 1e-6:
            output, variance = torch.zeros_like(x), None  # multiplied by `a`, 0 at the first step
        else:
            x0, variance = _guided(pipe, job, layer, z, level, label, acts=acts)
            output = _for_step(scheduler, x0, z, level).float()
        if variance is not None and isinstance(scheduler, diffusers.DDPMScheduler):
            output = torch.cat([output, variance], dim=1)
        x = scheduler.step(output, t, x, **extra)[0]
        done += number + 1 > warmup and (number + 1) % order == 0
    pixels: torch.Tensor = x
    return pixels


def _guided(  # noqa: PLR0913  # the terms of an equation
    pipe: Any,
    job: Job,
    layer: str,
    z: torch.Tensor,
    level: Level,
    label: int | None,
    *,
    acts: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """x0 under both guidances, and the learned variance of the row with the class."""
    is_guided = job.guidance_scale > 1 and bool(job.class_labels)
    other = pipe.null_class if is_guided else label
    x0_u, attention, variance = _denoised(pipe, layer, z, level, other)
    x0 = x0_u
    if is_guided:
        x0_c, _, variance = _denoised(pipe, layer, z, level, label)
        x0 = x0_u + job.guidance_scale * (x0_c - x0_u)
        if job.guidance_rescale:
            x0 = _rescaled(pipe, z, level, (x0, x0_c), job.guidance_rescale)
    if acts:
        clip = pipe.scheduler.config.get("clip_sample")
        bound = pipe.scheduler.config.clip_sample_range if clip else float("inf")
        clipped = x0_u.clamp(-bound, bound)
        _margins.append(float((attention - job.sag_mask_threshold).abs().min()))
        mask = (attention > job.sag_mask_threshold).double()
        mask = functional.interpolate(mask, z.shape[-2:])
        x0_blurred = mask * _blur(clipped, job.sag_blur_sigma) + (1 - mask) * clipped
        noise = (z - level.a * x0_u) / level.s
        degraded = level.a * x0_blurred + level.s * noise
        found, _, _ = _denoised(pipe, layer, degraded, level, other)
        x0 = x0 + job.sag_scale * (x0_blurred - found)
    return x0, variance


def _rescaled(
    pipe: Any, z: torch.Tensor, level: Level, x0s: tuple[torch.Tensor, torch.Tensor], share: float
) -> torch.Tensor:
    """A share of the network's output gets the deviation of that for the class (2305.08891)."""
    kind, a, s = pipe.scheduler.config.prediction_type, level.a, level.s
    guided, wanted = (
        {"epsilon": (z - a * x0) / s, "v_prediction": (a * z - x0) / s, "sample": x0}[kind]
        for x0 in x0s
    )
    output = (share * float(wanted.std() / guided.std()) + 1 - share) * guided
    return {"epsilon": (z - s * output) / a, "v_prediction": a * z - s * output, "sample": output}[
        kind
    ]


def _denoised(
    pipe: Any, layer: str, z: torch.Tensor, level: Level, label: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The network's x0 at `z`, how much each position is looked at, and its learned variance."""
    unet, seen = pipe.unet, []
    attn = unet.get_submodule(layer)
    hook = attn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    labels = None if label is None else torch.tensor([label])
    output = unet(z.float(), level.timestep, class_labels=labels).sample
    hook.remove()
    output, *variance = output.split(z.shape[1], dim=1)
    output, a, s = output.double(), level.a, level.s
    x0 = {
        "epsilon": (z - s * output) / a, "v_prediction": a * z - s * output, "sample": output,
    }[pipe.scheduler.config.prediction_type]  # fmt: skip
    picture = seen[0][:1]
    flat = picture.flatten(2)
    tokens = (flat if attn.group_norm is None else attn.group_norm(flat)).transpose(1, 2)
    heads = (*tokens.shape[:2], attn.heads, -1)
    query, key = attn.to_q(tokens).reshape(heads), attn.to_k(tokens).reshape(heads)
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    columns = scores.softmax(-1).mean(1).sum(1)  # over heads, then over queries
    attention = columns.reshape(1, 1, *picture.shape[-2:])
    return x0, attention, variance[0] if variance else None


def _blur(x0: torch.Tensor, sigma: float) -> torch.Tensor:
    channels, radius = x0.shape[1], min(RADIUS, min(x0.shape[-2:]) - 1)
    positions = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-(positions**2) / (2 * sigma**2))
    kernel = torch.outer(weights, weights)
    kernel /= kernel.sum()
    padded = functional.pad(x0, [radius] * 4, mode="reflect")
    return functional.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)


def _for_step(scheduler: Any, x0: torch.Tensor, z: torch.Tensor, level: Level) -> torch.Tensor:
    """The output in the scheduler's prediction type; IPNDM always takes velocity."""
    ipndm = isinstance(scheduler, diffusers.IPNDMScheduler)
    kind = "v_prediction" if ipndm else scheduler.config.prediction_type
    a, s = level.a, level.s
    return {"epsilon": (z - a * x0) / s, "v_prediction": (a * z - x0) / s, "sample": x0}[kind]
