"""Adds LoRA weights and textual inversions to a pipeline, and sets VAE slicing and tiling."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from worker.engine.loading.hub import source
from worker.engine.loading.pipelines import SAFE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.config.models import ModelSpec
    from worker.engine.pipeline import Pipeline


def add(pipeline: Pipeline, spec: ModelSpec) -> None:
    """Load LoRA weights and textual inversions, and set VAE slicing and tiling."""
    for number, each in enumerate(spec.lora):
        with _errors_name(each.path):
            pipeline.load_lora_weights(source(each.path), adapter_name=f"lora{number}", **SAFE)
    if spec.lora:
        names = [f"lora{number}" for number in range(len(spec.lora))]
        pipeline.set_adapters(names, [each.scale for each in spec.lora])
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


@contextmanager
def _errors_name(path: str) -> Iterator[None]:
    """Add the path to an error, since the libraries' own errors do not name the file."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{path}: {error}") from error
