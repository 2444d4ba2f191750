"""Adds LoRA weights and textual inversions to a pipeline, and sets VAE slicing and tiling.

The LoRA weights of the model's `lora` are active in all calls, those of its `adapters` in none.
"""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn

from worker.engine.device import device_errors
from worker.engine.loading import lora_files
from worker.engine.loading.hub import source
from worker.engine.loading.load_errors import may_pass
from worker.engine.loading.pipelines import SAFE
from worker.errors import AdapterLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from worker.config.models import ModelSpec
    from worker.engine.pipeline import Pipeline

logger = logging.getLogger(__name__)


def add(pipeline: Pipeline, spec: ModelSpec) -> None:
    """Load LoRA weights and textual inversions, and set VAE slicing and tiling.

    The files of `adapters` are only checked.
    """
    for adapter in spec.adapters.values():
        with _errors_name(adapter.path):
            _checked(pipeline, adapter.path)
    own = _own(spec)
    for name, lora in zip(own, spec.lora, strict=True):
        with _errors_name(lora.path):
            _load(pipeline, lora.path, name)
            _check_finite(pipeline, name)
    if own:
        pipeline.set_adapters(own, [each.scale for each in spec.lora])
    for inversion in spec.textual_inversion:
        with _errors_name(inversion.path):
            pipeline.load_textual_inversion(
                source(inversion.path),
                token=inversion.token,
                **SAFE,
            )
    if spec.vae_slicing:
        pipeline.vae.enable_slicing()
    if spec.vae_tiling:
        pipeline.vae.enable_tiling()


def in_peft(name: str) -> str:
    """The adapter's name in peft.

    The prefix keeps it apart from `lora0`, `lora1` … and from attributes of `ModuleDict`, in which
    peft has its weights.
    """
    return f"request-{name}"


def load(pipeline: Pipeline, spec: ModelSpec, name: str) -> None:
    """Load one of the model's `adapters`; raises `AdapterLoadError`, and nothing is left of it."""
    path, began_s = spec.adapters[name].path, time.perf_counter()
    try:
        try:
            _load(pipeline, path, in_peft(name))
        finally:
            for _, layer in _all_layers(pipeline):  # peft has made the new one active
                layer.set_adapter(_own(spec))
        _check_finite(pipeline, in_peft(name))
    except Exception as error:
        device_errors.exit_if_device_failed(error)
        unload(pipeline, name)
        message = f"adapter {name!r}, {path}, could not be loaded: {error}"
        passes = may_pass(error) or device_errors.is_out_of_memory(error)
        of_model = f"{name} of {spec.path}"
        raise AdapterLoadError(message[:2000], of_model, retryable=passes) from error
    took_s = time.perf_counter() - began_s
    logger.info("loaded adapter %s of %s in %.1f s", name, spec.path, took_s)


def unload(pipeline: Pipeline, name: str) -> None:
    """Remove an adapter, as far as it is loaded."""
    pipeline.delete_adapters(in_peft(name))


def _load(pipeline: Pipeline, path: str, key: str) -> None:
    """Load a LoRA file under a name of peft's, active; raises ValueError for another model's."""
    file, parts = _checked(pipeline, path)
    with warnings.catch_warnings():
        # That there are other adapters, and that alphas match nothing, see below.
        warnings.simplefilter("ignore")
        # The tensors alone: with the file diffusers would do all that its metadata asks for.
        pipeline.load_lora_weights(load_file(file), adapter_name=key)
    for each in parts:
        network = getattr(pipeline, each.network)
        layer = getattr(network, "text_model", network).get_submodule(each.layer)
        layer.lora_alpha[key] = each.alpha  # diffusers gives some the most frequent of all alphas
        layer.set_scale(key, 1.0)


def _checked(pipeline: Pipeline, path: str) -> tuple[Path, list[lora_files.LoraPart]]:
    """A LoRA file, and what it has for each layer; raises `ValueError` for another model's.

    Checked at each load, since a file may have been replaced after its model was loaded.
    """
    file = lora_files.read(source(path))
    parts = lora_files.parts_of(file, type(pipeline), pipeline.unet.config)
    shapes = {
        # peft puts the layer itself into one of its own.
        network: {
            name.replace(".base_layer.", "."): tuple(each.shape)
            for name, each in module.named_parameters()
        }
        for network, module in pipeline.components.items()
        if isinstance(module, nn.Module)
    }
    if (what := lora_files.fault(parts, shapes)) is not None:
        raise ValueError(what)
    return file.path, parts


def layers(pipeline: Pipeline, name: str) -> dict[nn.Module, list[Any]]:
    """The layers of each network for which a loaded adapter has weights."""
    found: dict[nn.Module, list[Any]] = {}
    for network, layer in _all_layers(pipeline):
        if in_peft(name) in layer.lora_A:
            found.setdefault(network, []).append(layer)
    return found


def _all_layers(pipeline: Pipeline) -> Iterator[tuple[nn.Module, Any]]:
    """The layers of each network that have, or had, LoRA weights."""
    for network in pipeline.components.values():
        if isinstance(network, nn.Module):
            for each in network.modules():
                if isinstance(each, LoraLayer):
                    yield network, each


def _own(spec: ModelSpec) -> list[str]:
    """What peft calls the LoRA weights of the model's `lora`."""
    return [f"lora{number}" for number in range(len(spec.lora))]


def _check_finite(pipeline: Pipeline, key: str) -> None:
    """Refuse weights with which every task would fail, after all of its steps."""
    for _, layer in _all_layers(pipeline):
        for part in (layer.lora_A, layer.lora_B):
            if key in part and not bool(part[key].weight.isfinite().all()):
                message = f"has weights that are not finite in {part[key].weight.dtype}"
                raise ValueError(message)


@contextmanager
def _errors_name(path: str) -> Iterator[None]:
    """Add the path to an error, since the libraries' own errors do not name the file."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{path}: {error}") from error
