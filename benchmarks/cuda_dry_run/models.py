"""Models as fake tensors on the device: no weights, so any size is built in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks import adm, sd15, sdxl
from benchmarks.cuda_dry_run.device import DEVICE
from worker.config.models import SHIPPED_MODEL
from worker.engine.families.pixel import Pixel
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.families.stable_diffusion_xl import StableDiffusionXL
from worker.engine.loaded_model import LoadedModel
from worker.engine.sampling.samplers import SAMPLERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.engine.families.family import Family


@dataclass(frozen=True)
class Model:
    """What builds the pipeline on torch's default device, and what serves it."""

    build: Callable[[], Any]
    family: Family
    #: A size that tasks have beside the model's own, height and width in pixels.
    other_px: tuple[int, int]
    #: Whether every task needs a mask.
    inpainting: bool = False
    vae_dtype: torch.dtype = torch.float16
    #: Those that run. A sampler knows no family, so a large model needs a few: one by timesteps, by
    #: sigmas, one that draws noise, one with a history, and one of two evaluations a step.
    samplers: tuple[str, ...] = tuple(SAMPLERS)
    #: What a pixel-space model takes in place of prompts, by the names of a job's fields.
    subject: Mapping[str, Any] | None = None
    #: The self-attention that SAG reads, where it is not the family's.
    sag_layer: str | None = None

    @property
    def main_rows(self) -> int:
        """Rows of a task's main pass."""
        return 1 if self.subject is not None and "class_labels" not in self.subject else 2

    @property
    def takes_adapters(self) -> bool:
        """Whether tasks that start from noise may have LoRA adapters."""
        return self.subject is None and not self.inpainting


def _bundled(*, inpainting: bool = False) -> Any:  # noqa: ANN401  # diffusers has no types
    """The bundled model's configuration: small, for the tests."""
    text = CLIPTextConfig.from_pretrained(SHIPPED_MODEL / "text_encoder")
    channels = {"in_channels": sd15.INPAINTING_CHANNELS} if inpainting else {}
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_config(AutoencoderKL.load_config(SHIPPED_MODEL / "vae")),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer.from_pretrained(SHIPPED_MODEL / "tokenizer"),
        unet=UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(SHIPPED_MODEL / "unet"), **channels
        ),
        scheduler=DDIMScheduler.from_pretrained(SHIPPED_MODEL / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


_FEW = ("ddim", "euler", "euler_a", "dpmpp_2m", "heun")
#: By the names of the command's option; the last four are small, for the tests.
MODELS = {
    "sd15": Model(sd15.pipeline, StableDiffusion(), (768, 512)),
    "sd15-inpainting": Model(
        partial(sd15.pipeline, inpainting=True), StableDiffusion(), (768, 512), inpainting=True
    ),
    "sdxl": Model(
        sdxl.pipeline,
        StableDiffusionXL(),
        (1216, 832),
        vae_dtype=torch.float32,
        samplers=_FEW,
    ),
    "adm": Model(
        partial(adm.pipeline, dtype=torch.float16), Pixel(), (192, 256), samplers=_FEW,
        subject={"prompts": (), "guidance_scale": 1.0, "sag_blur_sigma": adm.BLUR_SIGMA},
        sag_layer=adm.SAG_LAYER,
    ),
    "bundled": Model(_bundled, StableDiffusion(), (768, 512)),
    "bundled-inpainting": Model(
        partial(_bundled, inpainting=True),
        StableDiffusion(),
        (48, 64),
        inpainting=True,
        samplers=_FEW,
    ),
    "small-sdxl": Model(
        partial(sdxl.pipeline, 8, shallow=True),
        StableDiffusionXL(),
        (96, 64),
        vae_dtype=torch.float32,
        samplers=_FEW,
    ),
    "small-adm": Model(
        partial(adm.pipeline, 8, 5, torch.float16), Pixel(), (64, 96),
        samplers=(*_FEW, "ddpm"), subject={"prompts": (), "class_labels": (3,)},
    ),
}  # fmt: skip


def load(name: str) -> LoadedModel:
    """A model on the device in float16, placed as `model_loader.load` does. Inside `fake_cuda`."""
    model = MODELS[name]
    with torch.device("meta"):
        pipeline = model.build()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            dtype = model.vae_dtype if part is pipeline.vae else torch.float16
            _place(part, dtype, is_image=part in (pipeline.unet, pipeline.vae))
    pipeline.set_progress_bar_config(disable=True)
    layer = model.sag_layer or model.family.sag_layer
    return LoadedModel(model.family, pipeline, DEVICE, "none", sag_layer=layer)


def _place(part: torch.nn.Module, dtype: torch.dtype, *, is_image: bool) -> None:
    """Replace the tensors of a network by fake ones on the device."""
    for module in part.modules():
        tensors: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)  # noqa: SLF001  # `to` computes
        for held in tensors:
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = _placed(tensor, dtype, is_image=is_image)
    part.eval()


def _placed(tensor: torch.Tensor, dtype: torch.dtype, *, is_image: bool) -> torch.Tensor:
    used = dtype if tensor.is_floating_point() else tensor.dtype
    is_convolution = tensor.ndim == 4 and is_image  # noqa: PLR2004  # its weight
    layout = torch.channels_last if is_convolution else torch.contiguous_format
    made = torch.empty(tensor.shape, dtype=used, device=DEVICE, memory_format=layout)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(made, requires_grad=False)
    return made
