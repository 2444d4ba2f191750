"""Models, LoRA weights and textual inversions of a hub: downloaded once, then read from its cache.

What is in the cache is used as it is, also when the hub has a newer version. Imports no torch and
no diffusers: the engine's thread may be importing them.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from worker.config.models import is_hub_id, is_local
from worker.engine.loading import model_files
from worker.engine.loading.load_errors import load_error

if TYPE_CHECKING:
    from worker.config.models import ModelSpec

logger = logging.getLogger(__name__)

#: Never load pickles, which run code; never ask a hub, which may not answer.
SAFE = {"use_safetensors": True, "local_files_only": True}
_WEIGHTS = "*.safetensors"
#: The files of a model in diffusers' layout, without checkpoints of the whole in one file.
_PARTS = ["*.json", "*.txt", f"*/{_WEIGHTS}"]
#: The same weights in other precisions, which are not loaded.
_VARIANTS = ["*.fp16.*", "*.bf16.*", "*.non_ema.*", "*.ema_only.*"]


def local(path: str) -> Path | None:
    """Where a path, or the cached files of a hub id, are on this machine; None if nowhere."""
    if Path(path).exists():
        return Path(path)
    if not is_hub_id(path):
        return None
    try:  # the folder is asked for; without a pattern it must have every file of the repository
        folder = snapshot_download(path, local_files_only=True, allow_patterns="model_index.json")
        return Path(folder)
    except LocalEntryNotFoundError:
        return None


def source(path: str) -> str:
    """Where a path or a hub id is on this machine; raises OSError."""
    if (found := local(path)) is None:
        what = (
            "is not downloaded" if is_hub_id(path) else "is not on this machine, and is no hub id"
        )
        message = f"{path!r} {what}"
        raise OSError(message)
    return str(found)


def is_complete(spec: ModelSpec) -> bool:
    """Whether everything that the model needs is on this machine, or can't come from a hub."""
    if not is_local(spec.path):
        model = local(spec.path)
        if model is None or model_files.inspect(model, safety_checker=spec.safety_checker).faults:
            return False
    return not [each for each in _additions(spec) if not (is_local(each) or _has_weights(each))]


def download(spec: ModelSpec) -> None:
    """Download what is not here yet; raises `ModelLoadError`. A hub that is silent may block it."""
    if is_complete(spec):
        return
    began_s = time.perf_counter()
    logger.info("downloading model %s from the hub", spec.path)
    try:
        if not is_local(spec.path):
            unused = _VARIANTS if spec.safety_checker else [*_VARIANTS, "safety_checker/*"]
            snapshot_download(spec.path, allow_patterns=_PARTS, ignore_patterns=unused)
        for path in _additions(spec):
            if not (is_local(path) or _has_weights(path)):
                snapshot_download(path, allow_patterns=_WEIGHTS)
    except Exception as error:  # the hub's client raises anything
        raise load_error(spec, error) from error
    logger.info("downloaded model %s in %.1f s", spec.path, time.perf_counter() - began_s)


def _additions(spec: ModelSpec) -> list[str]:
    loras = (*spec.lora, *spec.adapters.values())
    return [each.path for each in loras] + [each.path for each in spec.textual_inversion]


def _has_weights(path: str) -> bool:
    folder = local(path)
    return folder is not None and any(folder.glob(_WEIGHTS))
