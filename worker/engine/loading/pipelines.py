"""Has diffusers build a pipeline from a folder, or from a checkpoint in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.engine.loading.load_errors import may_pass, refused
from worker.engine.loading.single_file import SingleFile

if TYPE_CHECKING:
    import torch

    from worker.config.models import ModelSpec
    from worker.engine.pipeline import Pipeline

#: Never load pickles, which run code; never ask a hub, which may not answer.
SAFE = {"use_safetensors": True, "local_files_only": True}
#: Parts that no checkpoint in one file has.
_NEVER = dict.fromkeys(("feature_extractor", "image_encoder"))


def build(
    kind: Any,  # noqa: ANN401  # a class of diffusers
    source: str,
    spec: ModelSpec,
    dtype: dict[str, torch.dtype],
    **options: Any,  # noqa: ANN401  # diffusers' own
) -> Pipeline:
    """A pipeline of class `kind`; raises what diffusers raises.

    `source` is the model's folder, or the configuration of a single file. `dtype` is the precision
    by network; `default` is that of all others.
    """
    if spec.is_single_file:
        return _of_single_file(kind, source, spec, dtype, **options)
    return kind.from_pretrained(source, dtype=dtype, variant=spec.variant, **options, **SAFE)


def _of_single_file(
    kind: Any,  # noqa: ANN401  # as above
    config: str,
    spec: ModelSpec,
    dtype: dict[str, torch.dtype],
    **options: Any,  # noqa: ANN401  # as above
) -> Pipeline:
    """Raises `ModelLoadError` where diffusers would leave out weights of the UNet in silence.

    What the text encoder lacks diffusers leaves without data, and the families report it.
    """
    try:  # `config` is a folder: with a hub id diffusers asks the hub, even if local_files_only
        made = kind.from_single_file(
            spec.path,
            config=config,
            torch_dtype=dtype["default"],
            local_files_only=True,
            **_NEVER,
            **options,
        )
    except Exception as error:  # of the first tensor that is missing, or has another shape
        if may_pass(error):
            raise
        what = f"it lacks weights, or is not of the kind of its config, {config}"
        raise OSError(f"{what}: {error}") from error
    made.unet.to(dtype.get("unet", dtype["default"]))
    have = SingleFile(spec.path).parameters("unet")
    take = sum(each.numel() for each in made.unet.parameters())
    if have > take:
        what = f"has a UNet of {have} parameters, its config {config!r} one of {take}"
        raise refused(spec, what)
    return made
