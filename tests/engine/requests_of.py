"""A job's fields as diffusers takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import safetensors.torch
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.engine.jobs.job import Job

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
#: Classes whose `step` refuses a network that predicts the sample.
_NO_SAMPLE = (
    diffusers.PNDMScheduler,
    diffusers.KDPM2DiscreteScheduler,
    diffusers.KDPM2AncestralDiscreteScheduler,
    diffusers.EulerAncestralDiscreteScheduler,
)


def scheduler_of(pipe: Any, job: Job) -> Any:
    """The job's scheduler, new and with its timesteps set; the model's own if it names none."""
    own = pipe.scheduler
    kind, options = SCHEDULERS[job.scheduler] if job.scheduler else (type(own), {})
    if own.config.prediction_type == "sample" and issubclass(kind, _NO_SAMPLE):
        options = options | {"prediction_type": "v_prediction"}
    scheduler = kind.from_config(own.config, **options)
    scheduler.set_timesteps(job.num_inference_steps, device="cpu")
    return scheduler


def texts(job: Job) -> dict[str, Any]:
    """Arguments for the prompts; one negative prompt stands for all."""
    count = len(job.prompts)
    given = {
        name: list(values) * (count if len(values) == 1 else 1) or None
        for name, values in (
            ("prompt_2", job.prompts_2),
            ("negative_prompt", job.negative_prompts),
            ("negative_prompt_2", job.negative_prompts_2),
        )
    }
    embeds = {
        name: tensor(getattr(job, name))
        for name in (
            "prompt_embeds", "negative_prompt_embeds",
            "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
        )
    }  # fmt: skip
    images = {"num_images_per_prompt": job.num_images_per_prompt, "clip_skip": job.clip_skip}
    return {"prompt": list(job.prompts) or None, **given, **embeds, **images}


def generators(job: Job, images: int) -> list[torch.Generator]:
    """One for each image: of its own seed, or of the one seed counted up."""
    seeds = job.seeds if len(job.seeds) == images else range(job.seeds[0], job.seeds[0] + images)
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def tensor(data: bytes | None) -> torch.Tensor | None:
    """The one tensor of a safetensors file."""
    return None if data is None else next(iter(safetensors.torch.load(data).values()))


def image_of(job: Job) -> Image.Image:
    """The picture to start from."""
    assert job.image is not None
    return Image.frombytes("RGB", (job.width or 0, job.height or 0), job.image)


def mask_image_of(job: Job) -> Image.Image | None:
    """What is painted anew."""
    if job.mask_image is None:
        return None
    return Image.frombytes("L", (job.width or 0, job.height or 0), job.mask_image)


def pixels_of(pipe: Any, job: Job) -> torch.Tensor:
    """The picture, (1, 3, height, width) in -1 … 1."""
    processor = VaeImageProcessor(vae_scale_factor=pipe.vae_scale_factor)
    pixels: torch.Tensor = processor.preprocess(image_of(job))
    return pixels


def mask_of(pipe: Any, job: Job) -> torch.Tensor | None:
    """1 where the picture is painted anew, (1, 1, height, width); None without a mask."""
    if (image := mask_image_of(job)) is None:
        return None
    processor = VaeImageProcessor(
        vae_scale_factor=pipe.vae_scale_factor,
        do_normalize=False,
        do_binarize=True,
        do_convert_grayscale=True,
    )
    mask: torch.Tensor = processor.preprocess(image)
    return mask


def encoder_of(pipe: Any) -> Callable[[torch.Tensor, torch.Generator], torch.Tensor]:
    """Pixels to latents, as diffusers' inpainting encodes them."""
    xl = hasattr(pipe, "text_encoder_2")
    kind = (
        diffusers.StableDiffusionXLInpaintPipeline
        if xl
        else diffusers.StableDiffusionInpaintPipeline
    )

    def encode(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        latents: torch.Tensor = kind._encode_vae_image(pipe, pixels, generator)
        return latents

    return encode


def time_ids(pipe: Any, job: Job) -> torch.Tensor:
    """The sizes that Stable Diffusion XL is conditioned on, (1, 6)."""
    native = pipe.unet.config.sample_size * pipe.vae_scale_factor
    own = (job.height or native, job.width or native)
    crop = job.crops_coords_top_left or (0, 0)
    sizes = (*(job.original_size or own), *crop, *(job.target_size or own))
    return torch.tensor([sizes], dtype=torch.float32)
