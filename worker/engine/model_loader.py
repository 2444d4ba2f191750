"""Loads a pipeline, validates it, adds LoRA and textual inversion, and places it on its device."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline

from worker import devices
from worker.config.models import CONVERT, is_hub_id
from worker.engine import device_memory, guidance, hub, load_errors, samplers
from worker.engine.offload import Network, Residency, networks_of, residency_on
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from worker.config.models import ModelSpec
    from worker.engine.pipeline import Pipeline

logger = logging.getLogger(__name__)

#: Offload `auto` keeps a model on the device when its weights fit this many times, which leaves
#: memory for activations and the decoder.
_WEIGHTS_FACTOR = 2.5
#: Never load pickles, which run code; never ask a hub, which may not answer.
_SAFE = {"use_safetensors": True, "local_files_only": True}


@dataclass(frozen=True)
class LoadedModel:
    """A pipeline on its device."""

    pipeline: Pipeline
    device: str
    #: Mode in use: `none`, `model`, `swap` or `sequential`.
    offload: str
    compiled: bool = False
    #: With `model` and `swap`: which networks are on the device, and those of this model.
    residency: Residency | None = None
    networks: Mapping[str, Network] = field(default_factory=dict)

    @cached_property
    def unet_dtype(self) -> torch.dtype:
        """Precision of the UNet. diffusers walks through all of its parameters to tell it."""
        dtype: torch.dtype = self.pipeline.unet.dtype
        return dtype

    def need(self, name: str) -> None:
        """Have a network of `offload.NETWORKS` on the device, on the engine's thread."""
        if self.residency is not None:
            self.residency.need(self.networks[name])

    def must_move(self, name: str) -> bool:
        """Whether `need` would move networks off the device, or its calls move layers."""
        if self.residency is not None:
            return not self.residency.has_room(self.networks[name])
        return self.offload == "sequential"

    def release(self) -> None:
        """Drop the networks from the device's. Hooks are a reference cycle with the pipeline."""
        if self.residency is not None:
            for network in self.networks.values():
                self.residency.forget(network)
        elif self.offload == "sequential":
            self.pipeline.remove_all_hooks()

    def set_work_bytes(self, name: str, work_bytes: int) -> None:
        """Say how much memory a network's calls need beside its weights."""
        if self.residency is not None:
            self.networks[name].work_bytes = work_bytes


def load(spec: ModelSpec, device: str, mode: str, *, compiled: bool = False) -> LoadedModel:
    """Build the pipeline of `spec` on `device`; raises `ModelLoadError` with the reason.

    `mode` is `none`, `model`, `swap`, `sequential` or `auto`. With `compiled` torch compiles the
    UNet; its first calls then take minutes. A model of a hub must be in its cache (`hub.download`).
    """
    began_s = time.perf_counter()
    _silence_libraries()
    if Path(spec.path).is_file():
        message = f"model {spec.path!r} is a single file, which is not supported; {CONVERT}"
        raise ModelLoadError(message, retryable=False)
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            _source(spec.path), dtype=_dtypes(spec, device), **_options(spec)
        )
        _check_supported(pipeline, spec)
        _add_adapters(pipeline, spec)
    except ModelLoadError:
        raise
    except Exception as error:  # malformed files raise anything
        raise load_errors.load_error(spec, error) from error
    try:
        model = _place(pipeline, device, mode, compiled=compiled)
    except Exception as error:  # of the device or its driver; another worker may do better
        message = f"model {spec.path!r} could not be placed on {device}: {error}"
        raise ModelLoadError(message[:2000]) from error
    pipeline.set_progress_bar_config(disable=True)
    if compiled:
        # One graph for each number of rows and size of latents; torch's default limit is 8.
        torch._dynamo.config.recompile_limit = 256  # noqa: SLF001  # torch's documented place
        pipeline.unet.compile(dynamic=False)
    logger.info("loaded model %s on %s in %.1f s", spec.path, device, time.perf_counter() - began_s)
    return model


def _silence_libraries() -> None:
    """Log only the libraries' errors, through the root logger; no progress bars."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.disable_default_handler()
        library.enable_propagation()
        library.set_verbosity_error()


def _source(path: str) -> str:
    """Where a path or a hub id is on this machine; raises OSError."""
    if (found := hub.local(path)) is None:
        what = (
            "is not downloaded" if is_hub_id(path) else "is not on this machine, and is no hub id"
        )
        message = f"{path!r} {what}"
        raise OSError(message)
    return str(found)


@contextmanager
def _errors_name(path: str) -> Iterator[None]:
    """Add the path to an error, since the libraries' own errors do not name the file."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{path}: {error}") from error


def _options(spec: ModelSpec) -> dict[str, Any]:
    options: dict[str, Any] = {**_SAFE}
    if not spec.safety_checker:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    return options


def _dtypes(spec: ModelSpec, device: str) -> dict[str, torch.dtype]:
    """Precision by network; `default` is that of all others."""
    if spec.dtype != "auto":
        return {"default": getattr(torch, spec.dtype)}
    if device != "cpu":
        return {"default": torch.float16}
    if devices.has_fast_bfloat16():
        logger.info("UNet in bfloat16: this processor has AMX (SAG_DTYPE=float32 does without)")
        return {"default": torch.float32, "unet": torch.bfloat16}
    return {"default": torch.float32}


def _check_supported(pipeline: Pipeline, spec: ModelSpec) -> None:
    """Raise `ModelLoadError` for a model that would fail tasks, or produce wrong images."""
    if spec.safety_checker and pipeline.safety_checker is None:
        message = f"model {spec.path!r} has no safety checker; set safety_checker to false for it"
        raise ModelLoadError(message, retryable=False)
    config = pipeline.unet.config
    prediction = pipeline.scheduler.config.get("prediction_type", "epsilon")
    tokens, vocabulary = len(pipeline.tokenizer), pipeline.text_encoder.config.vocab_size
    width, channels = pipeline.text_encoder.config.hidden_size, pipeline.vae.config.latent_channels
    # What a file does not have is left on torch's device without data.
    missing = [
        f"{part} {name}"
        for part in ("unet", "vae", "text_encoder")
        for name, parameter in getattr(pipeline, part).named_parameters()
        if parameter.is_meta
    ]
    wrong = {
        "has no attention in its mid block, which SAG needs":
            config.mid_block_type != "UNetMidBlock2DCrossAttn",
        "has inputs beside the text, as SDXL; only Stable Diffusion 1 and 2 are supported":
            config.addition_embed_type is not None or config.class_embed_type is not None,
        "takes the guidance scale as an input; load its LoRA on the model it came from":
            config.time_cond_proj_dim is not None,
        f"has {config.in_channels} input and {config.out_channels} output channels; inpainting "
        "models are not supported": config.in_channels != config.out_channels,
        f"predicts {prediction}, which is not supported":
            prediction not in guidance.PREDICTION_TYPES,
        f"has a tokenizer of {tokens} tokens for an encoder of {vocabulary}": tokens > vocabulary,
        "has a tokenizer without words: its folder lacks a file":
            tokens <= len(pipeline.tokenizer.all_special_tokens),
        f"has a text encoder of width {width} for a UNet of {config.cross_attention_dim}":
            width != config.cross_attention_dim,
        f"has a VAE of {channels} channels for a UNet of {config.in_channels}":
            channels != config.in_channels,
        f"lacks weights, such as {next(iter(missing), '')}": bool(missing),
        f"comes with {type(pipeline.scheduler).__name__}, which is not supported":
            not samplers.is_supported(pipeline.scheduler),
        "comes with a scheduler of continuous timesteps, which is not supported":
            pipeline.scheduler.config.get("timestep_type") == "continuous",
    }  # fmt: skip
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise ModelLoadError(f"model {spec.path!r} {what}", retryable=False)


def _add_adapters(pipeline: Pipeline, spec: ModelSpec) -> None:
    """Load LoRA weights and textual inversions, and set VAE slicing and tiling."""
    for number, each in enumerate(spec.lora):
        with _errors_name(each.path):
            pipeline.load_lora_weights(_source(each.path), adapter_name=f"lora{number}", **_SAFE)
    if spec.lora:
        names = [f"lora{number}" for number in range(len(spec.lora))]
        pipeline.set_adapters(names, [each.scale for each in spec.lora])
    for inversion in spec.textual_inversion:
        with _errors_name(inversion.path):
            pipeline.load_textual_inversion(
                _source(inversion.path),
                token=inversion.token,
                **_SAFE,
            )
    if spec.vae_slicing:
        pipeline.vae.enable_slicing()
    if spec.vae_tiling:
        pipeline.vae.enable_tiling()


def _place(pipeline: Pipeline, device: str, mode: str, *, compiled: bool) -> LoadedModel:
    """Move the pipeline to the device, or have its networks moved there when they are needed."""
    if device == "cpu":  # channels_last costs 15 % there at 24 rows of the bundled model
        logger.info("no accelerator: offload %r ignored", mode)
        pipeline.to("cpu")
        return LoadedModel(pipeline, device, "none", compiled)
    weights_bytes = _weights_bytes(pipeline)
    free_bytes = device_memory.free_bytes(torch.device(device))
    fits = weights_bytes * _WEIGHTS_FACTOR < free_bytes
    if mode == "auto":
        mode = "none" if fits else "model"
    logger.info(
        "offload %s on %s: weights %.1f GiB, free %.1f GiB%s", mode, device,
        weights_bytes / 2**30, free_bytes / 2**30,
        ", so all of them stay on the device" if mode == "model" and fits else "",
    )  # fmt: skip
    if mode in ("model", "swap"):
        if pipeline.safety_checker is not None:
            pipeline.safety_checker.to(device)
        residency = residency_on(torch.device(device), keeps=mode == "model")
        networks = networks_of(pipeline)
        return LoadedModel(pipeline, device, mode, compiled, residency, networks)
    if mode == "none":
        pipeline.to(device)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)
    if mode == "sequential":  # afterwards the weights have no data between two calls
        pipeline.enable_sequential_cpu_offload(device=device)
    return LoadedModel(pipeline, device, mode, compiled)


def _weights_bytes(pipeline: Pipeline) -> int:
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return sum(p.numel() * p.element_size() for part in modules for p in part.parameters())
