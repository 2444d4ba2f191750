"""Where a pipeline comes from: loading, the device it runs on, and what is offloaded."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline

from worker.config.models import is_hub_id
from worker.engine import guidance, load_errors, samplers
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.config.models import ModelSpec

logger = logging.getLogger(__name__)

#: `auto` keeps a model resident when it fits this many times over: weights, activations, the VAE.
_ROOM = 2.5
#: No pickles.
_SAFE = {"use_safetensors": True}


@dataclass(frozen=True)
class LoadedModel:
    """A pipeline that is ready, and where it runs."""

    pipeline: Any
    device: str
    #: The mode that was taken: `none`, `model` or `sequential`.
    offload: str
    compiled: bool = False


def load(spec: ModelSpec, device: str, offload: str, *, compiled: bool = False) -> LoadedModel:
    """Build the pipeline of `spec` on `device`; raises `ModelLoadError` with the reason.

    `compiled`: let torch compile the UNet; its first calls then take minutes.
    """
    began_s = time.perf_counter()
    _quieten()
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            _source(spec.path), dtype=_dtype(spec, device), **_options(spec)
        )
        _check(pipeline, spec)
        _adapt(pipeline, spec)
    except ModelLoadError:
        raise
    except Exception as error:  # broken files raise anything
        message = f"model {spec.path!r} could not be loaded: {error}"[:2000]
        if load_errors.may_pass(error):
            raise ModelLoadError(message) from error
        raise ModelLoadError(message + load_errors.REMEDY, retryable=False) from error
    try:
        mode = _place(pipeline, device, offload)
    except Exception as error:  # of the device or its driver; another worker may do better
        message = f"model {spec.path!r} could not be placed on {device}: {error}"
        raise ModelLoadError(message[:2000]) from error
    if device != "cpu":
        # On a CPU it costs 15 % at 24 rows, measured with the small model.
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    if compiled:
        # One graph for each number of rows and each size of latents; torch gives up after 8.
        torch._dynamo.config.recompile_limit = 256  # noqa: SLF001  # torch's documented place
        pipeline.unet.compile(dynamic=False)
    logger.info("built %s on %s in %.1f s", spec.path, device, time.perf_counter() - began_s)
    return LoadedModel(pipeline, device, mode, compiled)


def _quieten() -> None:
    """Bring the libraries' own handlers and bars into the one log: only their errors, no bars."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.disable_default_handler()
        library.enable_propagation()
        library.set_verbosity_error()


def _source(path: str) -> str:
    """What is there, or a hub id."""
    if Path(path).exists() or is_hub_id(path):
        return path
    message = f"{path!r} is neither on this machine nor a hub id (owner/name)"
    raise OSError(message)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """The libraries' errors do not say which file it is."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{path}: {error}") from error


def _where(path: str) -> dict[str, bool]:
    """Never the network for what is on this machine."""
    return {"local_files_only": Path(path).exists()}


def _options(spec: ModelSpec) -> dict[str, Any]:
    options: dict[str, Any] = {
        **_SAFE,
        **_where(spec.path),
    }
    if not spec.safety_checker:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    return options


def _dtype(spec: ModelSpec, device: str) -> torch.dtype:
    name = spec.dtype
    if name == "auto":
        name = "float32" if device == "cpu" else "float16"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _check(pipeline: Any, spec: ModelSpec) -> None:  # noqa: ANN401  # a diffusers pipeline
    """Refuse at once what would fail, or be silently wrong, in the middle of a task."""
    if spec.safety_checker and pipeline.safety_checker is None:
        message = f"model {spec.path!r} has no safety checker; set safety_checker to false for it"
        raise ModelLoadError(message, retryable=False)
    config = pipeline.unet.config
    prediction = pipeline.scheduler.config.get("prediction_type", "epsilon")
    words, known = len(pipeline.tokenizer), pipeline.text_encoder.config.vocab_size
    wrong = {
        "has no attention in its mid block, which SAG reads":
            config.mid_block_type != "UNetMidBlock2DCrossAttn",
        "wants more beside the text, as SDXL does; only Stable Diffusion 1 and 2 are served":
            config.addition_embed_type is not None or config.class_embed_type is not None,
        "takes the guidance scale as an input; load its LoRA on the model it came from":
            config.time_cond_proj_dim is not None,
        f"takes {config.in_channels} channels and gives {config.out_channels}; inpainting and the "
        "like are not served": config.in_channels != config.out_channels,
        f"predicts {prediction}, which is not known here": prediction not in guidance.KINDS,
        f"has a tokenizer of {words} words for an encoder of {known}": words != known,
        f"comes with {type(pipeline.scheduler).__name__}, whose noise levels are not known here":
            not samplers.is_served(pipeline.scheduler),
    }  # fmt: skip
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise ModelLoadError(f"model {spec.path!r} {what}", retryable=False)


def _adapt(pipeline: Any, spec: ModelSpec) -> None:  # noqa: ANN401  # a diffusers pipeline
    """Load what the settings put on top of the weights, and choose how the parts compute."""
    for number, each in enumerate(spec.lora):
        with _naming(each.path):
            pipeline.load_lora_weights(
                _source(each.path), adapter_name=f"lora{number}", **_SAFE, **_where(each.path)
            )
    if spec.lora:
        names = [f"lora{number}" for number in range(len(spec.lora))]
        pipeline.set_adapters(names, [each.scale for each in spec.lora])
    for inversion in spec.textual_inversion:
        with _naming(inversion.path):
            pipeline.load_textual_inversion(
                _source(inversion.path), token=inversion.token, **_SAFE, **_where(inversion.path)
            )
    if spec.vae_slicing:
        pipeline.vae.enable_slicing()
    if spec.vae_tiling:
        pipeline.vae.enable_tiling()


def _place(pipeline: Any, device: str, offload: str) -> str:  # noqa: ANN401  # a diffusers pipeline
    """Move the pipeline or hook it up, as `offload` says; gives the mode that was taken."""
    if device == "cpu":
        logger.info("no accelerator: offload %r has no meaning and is not used", offload)
        pipeline.to("cpu")
        return "none"
    mode = _auto(pipeline, device) if offload == "auto" else offload
    match mode:
        case "none":
            pipeline.to(device)
        case "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        case _:
            pipeline.enable_model_cpu_offload(device=device)
    logger.info("offload %s on %s", mode, device)
    return mode


def _auto(pipeline: Any, device: str) -> str:  # noqa: ANN401  # a diffusers pipeline
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    weights_bytes = sum(p.numel() * p.element_size() for part in modules for p in part.parameters())
    free_bytes, _ = torch.cuda.mem_get_info(device)
    mode = "none" if weights_bytes * _ROOM < free_bytes else "model"
    logger.info(
        "offload auto: weights %.1f GiB, free %.1f GiB, so %s",
        weights_bytes / 2**30,
        free_bytes / 2**30,
        mode,
    )
    return mode
