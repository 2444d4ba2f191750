"""Loads a pipeline, validates it, and places it on its device."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
import torch
import transformers

from worker import devices
from worker.engine.denoising import guidance, sag_attention
from worker.engine.device import device_memory
from worker.engine.device.offload import networks_of, residency_on
from worker.engine.families.served import family_of
from worker.engine.loaded_model import LoadedModel
from worker.engine.loading import adapters, hub, load_errors, single_file
from worker.engine.loading.single_file import SingleFile
from worker.engine.sampling import samplers
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.config.models import ModelSpec
    from worker.engine.families.family import Family
    from worker.engine.pipeline import Pipeline

logger = logging.getLogger(__name__)

#: Offload `auto` keeps a model on the device when its weights fit this many times, which leaves
#: memory for activations and the decoder.
_WEIGHTS_FACTOR = 2.5


def load(spec: ModelSpec, device: str, mode: str, *, compiled: bool = False) -> LoadedModel:
    """Build the pipeline of `spec` on `device`; raises `ModelLoadError` with the reason.

    `mode` is `none`, `model`, `swap`, `sequential` or `auto`. With `compiled` torch compiles the
    UNet; its first calls then take minutes. A model of a hub must be in its cache (`hub.download`).
    """
    began_s = time.perf_counter()
    _silence_libraries()
    try:
        source = _source(spec)
        family = _family(source, spec)
        pipeline = _pipeline(family, source, spec, device)
        _check_supported(family, pipeline, spec)
        adapters.add(pipeline, spec)
    except ModelLoadError:
        raise
    except Exception as error:  # malformed files raise anything
        raise load_errors.load_error(spec, error) from error
    try:
        model = _place(family, pipeline, device, mode, compiled=compiled)
    except Exception as error:  # of the device or its driver; another worker may do better
        message = f"model {spec.path!r} could not be placed on {device}: {error}"
        raise ModelLoadError(message[:2000]) from error
    model = replace(model, sag_layer=spec.sag_layer or family.sag_layer, has_lora=bool(spec.lora))
    pipeline.set_progress_bar_config(disable=True)
    if compiled:
        # One graph for each number of rows and size of latents; torch's default limit is 8.
        torch._dynamo.config.recompile_limit = 256  # noqa: SLF001  # torch's documented place
        pipeline.unet.compile(dynamic=False)
    logger.info("loaded model %s on %s in %.1f s", spec.path, device, time.perf_counter() - began_s)
    return model


def _source(spec: ModelSpec) -> Path:
    """The model's folder, or that of a single file's configuration; raises OSError.

    Raises `ModelLoadError` for a file that is no checkpoint, or of another kind than its config.
    """
    path = Path(hub.source(spec.path))
    if not spec.is_single_file:
        if path.is_file():
            raise load_errors.refused(spec, single_file.why_unread(path.name))
        return path
    try:
        file = SingleFile(spec.path)
        config = Path(hub.source(file.config(spec)))
    except ModelLoadError as error:
        raise load_errors.refused(spec, error.message, error) from error
    found = file.inspect(config, safety_checker=spec.safety_checker)
    if found.faults:
        passing = next(filter(load_errors.may_pass, found.errors), None)
        raise load_errors.refused(spec, "; it ".join(found.faults), passing)
    return config


def _pipeline(family: Family, source: Path, spec: ModelSpec, device: str) -> Pipeline:
    """Build the pipeline; raises OSError with what is wrong with the files, if anything is."""
    try:
        return family.pipeline(str(source), spec, dtype=_dtypes(spec, device))
    except Exception as error:  # malformed files raise anything
        if not (faults := hub.inspect(spec, source).faults):
            raise
        raise OSError("; ".join(faults)) from error


def _family(source: Path, spec: ModelSpec) -> Family:
    """The model's family; raises `ModelLoadError` with the model's path."""
    try:
        return family_of(source)
    except ModelLoadError as error:
        raise load_errors.load_error(spec, error) from error


def _silence_libraries() -> None:
    """Log only the libraries' errors, through the root logger; no progress bars."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.disable_default_handler()
        library.enable_propagation()
        library.set_verbosity_error()


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


def _check_supported(family: Family, pipeline: Pipeline, spec: ModelSpec) -> None:
    """Raise `ModelLoadError` for a model that would fail tasks, or produce wrong images."""
    if spec.safety_checker and getattr(pipeline, "safety_checker", None) is None:
        message = f"model {spec.path!r} has no safety checker; set safety_checker to false for it"
        raise ModelLoadError(message, retryable=False)
    if unsupported := family.unsupported(spec):
        message = (
            f"model {spec.path!r} is a {family.title} model, which takes no `{unsupported[0]}`"
        )
        raise ModelLoadError(message, retryable=False)
    layer = spec.sag_layer or family.sag_layer
    if (what := next(_faults(family, pipeline, layer), None)) is not None:
        raise ModelLoadError(f"model {spec.path!r} {what}", retryable=False)


def _faults(family: Family, pipeline: Pipeline, layer: str) -> Iterator[str]:
    """Why a pipeline is not served, each as the end of a sentence about the model."""
    scheduler = pipeline.scheduler
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if (what := sag_attention.fault(pipeline.unet, layer)) is not None:
        yield what
    yield from family.faults(pipeline)
    if prediction not in guidance.PREDICTION_TYPES:
        yield f"predicts {prediction}, which is not supported"
    if not samplers.is_supported(scheduler):
        yield f"comes with {type(scheduler).__name__}, which is not supported"
    if scheduler.config.get("timestep_type") == "continuous":
        yield "comes with a scheduler of continuous timesteps, which is not supported"


def _place(
    family: Family, pipeline: Pipeline, device: str, mode: str, *, compiled: bool
) -> LoadedModel:
    """Move the pipeline to the device, or have its networks moved there when they are needed."""
    if device == "cpu":  # channels_last costs 15 % there at 24 rows of the bundled model
        logger.info("no accelerator: offload %r ignored", mode)
        pipeline.to("cpu")
        return LoadedModel(family, pipeline, device, "none", compiled)
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
        if (checker := getattr(pipeline, "safety_checker", None)) is not None:
            checker.to(device)
        residency = residency_on(torch.device(device), keeps=mode == "model")
        networks = networks_of(pipeline, family.networks)
        return LoadedModel(
            family, pipeline, device, mode, compiled, residency=residency, networks=networks
        )
    if mode == "none":
        pipeline.to(device)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)
    if mode == "sequential":  # afterwards the weights have no data between two calls
        pipeline.enable_sequential_cpu_offload(device=device)
    return LoadedModel(family, pipeline, device, mode, compiled)


def _weights_bytes(pipeline: Pipeline) -> int:
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return sum(p.numel() * p.element_size() for part in modules for p in part.parameters())
