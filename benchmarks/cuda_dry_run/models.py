"""Models as fake tensors on the device: no weights, so any size is built in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks import sd15
from benchmarks.cuda_dry_run.device import DEVICE
from worker.config.models import SHIPPED_MODEL
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.loaded_model import LoadedModel

if TYPE_CHECKING:
    from collections.abc import Callable


def _bundled() -> Any:  # noqa: ANN401  # diffusers has no types
    """The bundled model's configuration: small, for the tests."""
    text = CLIPTextConfig.from_pretrained(SHIPPED_MODEL / "text_encoder")
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_config(AutoencoderKL.load_config(SHIPPED_MODEL / "vae")),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer.from_pretrained(SHIPPED_MODEL / "tokenizer"),
        unet=UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(SHIPPED_MODEL / "unet")
        ),
        scheduler=DDIMScheduler.from_pretrained(SHIPPED_MODEL / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


#: Families by name: what builds the pipeline on torch's default device.
FAMILIES: dict[str, Callable[[], Any]] = {"sd15": sd15.pipeline, "bundled": _bundled}


def load(family: str) -> LoadedModel:
    """A family on the device in float16, placed as `model_loader.load` does. Inside `fake_cuda`."""
    with torch.device("meta"):
        pipeline = FAMILIES[family]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            _place(part, is_text=part is pipeline.text_encoder)
    pipeline.set_progress_bar_config(disable=True)
    return LoadedModel(StableDiffusion(), pipeline, DEVICE, "none")


def _place(part: torch.nn.Module, *, is_text: bool) -> None:
    """Replace the tensors of a network by fake ones on the device."""
    for module in part.modules():
        tensors: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)  # noqa: SLF001  # `to` computes
        for held in tensors:
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = _placed(tensor, is_text=is_text)
    part.eval()


def _placed(tensor: torch.Tensor, *, is_text: bool) -> torch.Tensor:
    dtype = torch.float16 if tensor.is_floating_point() else tensor.dtype
    is_image = tensor.ndim == 4 and not is_text  # noqa: PLR2004  # a convolution's weight
    layout = torch.channels_last if is_image else torch.contiguous_format
    made = torch.empty(tensor.shape, dtype=dtype, device=DEVICE, memory_format=layout)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(made, requires_grad=False)
    return made
