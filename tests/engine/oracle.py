"""The latents of one request alone, by diffusers' pipelines or by the plainest possible loop.

It knows nothing of the engine but the fields of a job. Latents are (images, channels, h, w) in
float32. The equations are those of Self-Attention Guidance (arXiv 2210.00939) in x0 form.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import diffusers
import numpy as np
import safetensors.torch
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch.nn import functional

if TYPE_CHECKING:
    from worker.engine.job import Job

#: A `diffusers.StableDiffusionPipeline` in fp32 on the CPU; diffusers has no types.
Pipeline: TypeAlias = Any

_DPMPP, _SDE = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
_PLAIN, _KARRAS = {"use_karras_sigmas": False}, {"use_karras_sigmas": True}

#: Each wire name, built on top of a model's own configuration.
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (diffusers.DDIMScheduler, {}),
    "ddpm": (diffusers.DDPMScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, _DPMPP | _PLAIN),
    "dpmpp_2m_karras": (diffusers.DPMSolverMultistepScheduler, _DPMPP | _KARRAS),
    "dpmpp_2m_sde": (diffusers.DPMSolverMultistepScheduler, _SDE | _PLAIN),
    "dpmpp_2m_sde_karras": (diffusers.DPMSolverMultistepScheduler, _SDE | _KARRAS),
    "dpmpp_2s": (diffusers.DPMSolverSinglestepScheduler, _DPMPP | _PLAIN),
    "dpmpp_2s_karras": (diffusers.DPMSolverSinglestepScheduler, _DPMPP | _KARRAS),
    "unipc": (diffusers.UniPCMultistepScheduler, _PLAIN),
    "unipc_karras": (diffusers.UniPCMultistepScheduler, _KARRAS),
    "deis": (diffusers.DEISMultistepScheduler, _PLAIN),
    "deis_karras": (diffusers.DEISMultistepScheduler, _KARRAS),
    "lms": (diffusers.LMSDiscreteScheduler, _PLAIN),
    "lms_karras": (diffusers.LMSDiscreteScheduler, _KARRAS),
    "euler": (diffusers.EulerDiscreteScheduler, _PLAIN),
    "euler_karras": (diffusers.EulerDiscreteScheduler, _KARRAS),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, _PLAIN),
    "heun_karras": (diffusers.HeunDiscreteScheduler, _KARRAS),
    "kdpm2": (diffusers.KDPM2DiscreteScheduler, _PLAIN),
    "kdpm2_a": (diffusers.KDPM2AncestralDiscreteScheduler, _PLAIN),
    "ipndm": (diffusers.IPNDMScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
    "tcd": (diffusers.TCDScheduler, {}),
}

#: Where upstream is right: whole timesteps, and the noise level of each is that of its sigma.
UPSTREAM = frozenset(
    {"ddim", "ddpm", "pndm", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "unipc", "deis", "lcm", "tcd"}
)

#: Of each evaluation since `threshold_margin` began.
_margins: list[float] = []
#: Classes whose `step` refuses a network that predicts the sample.
_NO_SAMPLE = (
    diffusers.PNDMScheduler,
    diffusers.KDPM2DiscreteScheduler,
    diffusers.KDPM2AncestralDiscreteScheduler,
    diffusers.EulerAncestralDiscreteScheduler,
)


@dataclass(frozen=True)
class _Level:
    """Noise level of the UNet's input `z = a x0 + s noise`, and its timestep."""

    timestep: torch.Tensor
    a: float
    s: float


def upstream(pipe: Pipeline, job: Job) -> torch.Tensor:
    """Latents by `StableDiffusionSAGPipeline`; see `UPSTREAM` for where they are right."""
    return _call(diffusers.StableDiffusionSAGPipeline, pipe, job, sag_scale=job.sag_scale)


def plain(pipe: Pipeline, job: Job) -> torch.Tensor:
    """Latents by `StableDiffusionPipeline`, which has no Self-Attention Guidance."""
    assert job.sag_scale == 0
    return _call(diffusers.StableDiffusionPipeline, pipe, job)


def alone(pipe: Pipeline, job: Job) -> torch.Tensor:
    """Latents by the plain loop, one image after the other, one UNet row at a time."""
    with torch.no_grad():
        texts = pipe.encode_prompt(
            device=torch.device("cpu"),
            do_classifier_free_guidance=job.guidance_scale > 1,
            **_texts(job),
        )
        prompts = texts[0].split(1)
        opposites = prompts if texts[1] is None else texts[1].split(1)
        generators = _generators(job, len(prompts))
        given = _tensor(job.latents)
        starts = [None] * len(prompts) if given is None else given.split(1)
        rows = zip(generators, starts, opposites, prompts, strict=True)
        return torch.cat([_image(pipe, job, *row) for row in rows])


def threshold_margin(pipe: Pipeline, job: Job) -> float:
    """Least distance of a column sum from the mask's threshold in the loop's evaluations."""
    _margins.clear()
    alone(pipe, job)
    return min(_margins, default=float("inf"))


def wrapped(pipe: Pipeline, prediction_type: str, like: Job | None = None) -> Pipeline:
    """A copy of an epsilon model whose UNet's output is written as `v_prediction` or `sample`.

    A UNet gets only the timestep. Its noise level is interpolated linearly in log sigma; `like`
    gives the levels of that job's scheduler instead, whose timesteps may be rounded or clipped.
    """
    unet = copy.deepcopy(pipe.unet)
    epsilon = unet.forward
    levels = _training_levels(pipe) if like is None else _levels_of(pipe, like)

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
    return _pipeline(diffusers.StableDiffusionPipeline, pipe, unet=unet, scheduler=scheduler)


def crowded(pipe: Pipeline, rows: int = 3) -> Pipeline:
    """A copy whose UNet computes each row several times in one call: other kernels, other rounding.

    Its latents differ from those of `pipe` by rounding alone.
    """
    unet = copy.deepcopy(pipe.unet)
    usual = unet.forward

    def forward(
        z: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, **kwargs: Any
    ) -> Any:
        kwargs.pop("return_dict", None)
        texts = encoder_hidden_states.repeat(rows, 1, 1)
        output = usual(z.repeat(rows, 1, 1, 1), timestep, texts, return_dict=False, **kwargs)[0]
        return UNet2DConditionOutput(output[: len(z)])

    unet.forward = forward
    return _pipeline(diffusers.StableDiffusionPipeline, pipe, unet=unet)


def scheduler_of(pipe: Pipeline, job: Job) -> Any:
    """The job's scheduler, new and with its timesteps set; the model's own if it names none."""
    own = pipe.scheduler
    kind, options = SCHEDULERS[job.scheduler] if job.scheduler else (type(own), {})
    if own.config.prediction_type == "sample" and issubclass(kind, _NO_SAMPLE):
        options = options | {"prediction_type": "v_prediction"}
    scheduler = kind.from_config(own.config, **options)
    scheduler.set_timesteps(job.num_inference_steps, device="cpu")
    return scheduler


def _image(
    pipe: Pipeline,
    job: Job,
    generator: torch.Generator,
    start: torch.Tensor | None,
    opposite: torch.Tensor,
    prompt: torch.Tensor,
) -> torch.Tensor:
    """Latents (1, channels, h, w) of one image, from its noise or a `start` of the job's own."""
    scheduler = scheduler_of(pipe, job)
    unet, factor = pipe.unet.config, pipe.vae_scale_factor
    sides = [side // factor if side else unet.sample_size for side in (job.height, job.width)]
    if start is None:
        start = torch.randn((1, unet.in_channels, *sides), generator=generator)
    x: torch.Tensor = start * scheduler.init_noise_sigma
    takes = inspect.signature(scheduler.step).parameters
    extra = {"eta": job.eta, "generator": generator}
    extra = {name: value for name, value in extra.items() if name in takes}
    for number, t in enumerate(scheduler.timesteps):
        level = _level(pipe, scheduler, number)
        # In fp32 the way to x0 and back would lose more than the engine does.
        z = scheduler.scale_model_input(x, t).double()
        if isinstance(scheduler, diffusers.IPNDMScheduler) and level.a < 1e-6:
            output = torch.zeros_like(z)  # it is multiplied by `a`, which is 0 at the first step
        else:
            x0 = _guided(pipe, job, z, level, (opposite, prompt))
            output = _for_step(scheduler, x0, z, level)
        x = scheduler.step(output.float(), t, x, **extra).prev_sample
    return x


def _guided(
    pipe: Pipeline, job: Job, z: torch.Tensor, level: _Level, texts: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """The network's x0 at `z` under both guidances; `texts` are without and with the prompt."""
    opposite, prompt = texts
    x0_u, attention = _denoised(pipe, z, level, opposite)
    x0 = x0_u
    if job.guidance_scale > 1:
        x0_c, _ = _denoised(pipe, z, level, prompt)
        x0 = x0_u + job.guidance_scale * (x0_c - x0_u)
    if job.sag_scale > 0 and min(z.shape[-2:]) > 4:  # the blur can't pad a smaller side
        _margins.append(float((attention - 1.0).abs().min()))
        mask = functional.interpolate((attention > 1.0).double(), z.shape[-2:])
        x0_blurred = x0_u + mask * (_blur(x0_u) - x0_u)
        x_deg = z + level.a * (x0_blurred - x0_u)
        x0 = x0 + job.sag_scale * (x0_blurred - _denoised(pipe, x_deg, level, opposite)[0])
    return x0


def _denoised(
    pipe: Pipeline, z: torch.Tensor, level: _Level, text: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's x0, and how much each token of its middle is looked at (1, 1, h, w)."""
    seen: list[torch.Tensor] = []
    middle = pipe.unet.mid_block.attentions[0]
    attn = middle.transformer_blocks[0].attn1
    hooks = [
        part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for part in (middle, attn)
    ]
    output = pipe.unet(z.float(), level.timestep, encoder_hidden_states=text).sample.double()
    for hook in hooks:
        hook.remove()
    picture, tokens = (each[:1] for each in seen)
    heads = (*tokens.shape[:2], attn.heads, -1)
    query, key = attn.to_q(tokens).reshape(heads), attn.to_k(tokens).reshape(heads)
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    columns = scores.softmax(-1).mean(1).sum(1)  # over heads, then over queries
    a, s = level.a, level.s
    x0 = {"epsilon": (z - s * output) / a, "v_prediction": a * z - s * output, "sample": output}
    own = x0[pipe.scheduler.config.prediction_type]
    return own, columns.reshape(1, 1, *picture.shape[-2:])


def _blur(x0: torch.Tensor) -> torch.Tensor:
    """A Gaussian of sigma 1 over 9 x 9, its edges mirrored."""
    line = torch.exp(-0.5 * torch.arange(-4.0, 5.0, dtype=torch.float64) ** 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    padded = functional.pad(x0, (4, 4, 4, 4), mode="reflect")
    channels = x0.shape[1]
    return functional.conv2d(padded, kernel.expand(channels, 1, 9, 9), groups=channels)


def _for_step(scheduler: Any, x0: torch.Tensor, z: torch.Tensor, level: _Level) -> torch.Tensor:
    """The output in the scheduler's prediction type; IPNDM always takes velocity."""
    ipndm = isinstance(scheduler, diffusers.IPNDMScheduler)
    kind = "v_prediction" if ipndm else scheduler.config.prediction_type
    a, s = level.a, level.s
    return {"epsilon": (z - a * x0) / s, "v_prediction": (a * z - x0) / s, "sample": x0}[kind]


def _level(pipe: Pipeline, scheduler: Any, number: int) -> _Level:
    """The noise level at the scheduler's evaluation `number`."""
    t = scheduler.timesteps[number]
    if isinstance(scheduler, diffusers.IPNDMScheduler):
        a, s = float(scheduler.alphas[number]), float(scheduler.betas[number])
        times, log_sigmas = _training_levels(pipe)
        time = np.interp(np.log(s / max(a, 1e-8)), log_sigmas, times)
        return _Level(torch.tensor(time, dtype=torch.float32), a, s)
    if not hasattr(scheduler, "sigmas"):
        alpha = float(scheduler.alphas_cumprod[t])
        return _Level(t, alpha**0.5, (1 - alpha) ** 0.5)
    sigma = scheduler.sigmas[number]
    if number % 2 and isinstance(scheduler, diffusers.KDPM2DiscreteScheduler):
        sigma = scheduler.sigmas_interpol[number]
    if number % 2 and isinstance(scheduler, diffusers.KDPM2AncestralDiscreteScheduler):
        sigma = scheduler.sigmas_interpol[number - 1]
    a = (float(sigma) ** 2 + 1) ** -0.5
    return _Level(t, a, float(sigma) * a)


def _training_levels(pipe: Pipeline) -> tuple[np.ndarray, np.ndarray]:
    """The times that the model was trained at, and log sigma of each."""
    alphas = diffusers.DDPMScheduler.from_config(pipe.scheduler.config).alphas_cumprod.double()
    return np.arange(float(len(alphas))), (0.5 * ((1 - alphas) / alphas).log()).numpy()


def _levels_of(pipe: Pipeline, job: Job) -> tuple[np.ndarray, np.ndarray]:
    """The times that a job's scheduler tells the UNet, rising, and log sigma of each."""
    scheduler = scheduler_of(pipe, job)
    levels = [_level(pipe, scheduler, number) for number in range(len(scheduler.timesteps))]
    table = sorted({float(at.timestep): np.log(at.s / max(at.a, 1e-8)) for at in levels}.items())
    times, log_sigmas = np.array(table).T
    return times, log_sigmas


def _call(kind: Any, pipe: Pipeline, job: Job, **more: Any) -> torch.Tensor:
    """Latents by `kind`'s own call; whatever happens, the UNet is as it was."""
    processors = dict(pipe.unet.attn_processors)
    texts = _texts(job)
    rows = len(job.prompts) or len(texts["prompt_embeds"])
    try:
        latents: torch.Tensor = _pipeline(kind, pipe, scheduler=scheduler_of(pipe, job))(
            **texts,
            latents=_tensor(job.latents),
            height=job.height,
            width=job.width,
            num_inference_steps=job.num_inference_steps,
            guidance_scale=job.guidance_scale,
            eta=job.eta,
            generator=_generators(job, rows * job.num_images_per_prompt),
            output_type="latent",
            **more,
        ).images
    finally:
        pipe.unet.set_attn_processor(processors)
    return latents


def _pipeline(kind: Any, pipe: Pipeline, **changes: Any) -> Pipeline:
    """A pipeline of another kind, or of other parts, beside `pipe`."""
    made = kind(**(pipe.components | changes), requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def _texts(job: Job) -> dict[str, Any]:
    """Arguments of diffusers for the prompts; one negative prompt stands for all."""
    negatives = list(job.negative_prompts)
    if len(negatives) == 1:
        negatives *= len(job.prompts)
    return {
        "prompt": list(job.prompts) or None,
        "negative_prompt": negatives or None,
        "prompt_embeds": _tensor(job.prompt_embeds),
        "negative_prompt_embeds": _tensor(job.negative_prompt_embeds),
        "num_images_per_prompt": job.num_images_per_prompt,
    }


def _generators(job: Job, images: int) -> list[torch.Generator]:
    """One for each image: of its own seed, or of the one seed counted up."""
    seeds = job.seeds if len(job.seeds) == images else range(job.seeds[0], job.seeds[0] + images)
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def _tensor(data: bytes | None) -> torch.Tensor | None:
    """The one tensor of a safetensors file."""
    return None if data is None else next(iter(safetensors.torch.load(data).values()))
