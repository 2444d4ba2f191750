"""Models, their configuration, LoRA weights and textual inversions of a hub, and its cache.

They are downloaded once. What is in the cache is used as it is, also when the hub has a newer
version. Imports no torch and no diffusers: the engine's thread may be importing them.
"""

from __future__ import annotations

import glob
import logging
import time
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from worker.config.models import is_hub_id, is_local
from worker.engine.loading import model_files, model_json, weight_files
from worker.engine.loading.load_errors import load_error
from worker.engine.loading.single_file import SingleFile
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.config.models import ModelSpec
    from worker.engine.loading.model_files import ModelFiles

logger = logging.getLogger(__name__)
# The hub's client would write its lines twice, and once with the login of HF_ENDPOINT.
logging.getLogger("huggingface_hub").handlers.clear()

_WEIGHTS = "*.safetensors"
#: The files of a model's configuration and of its tokenizers. Index files of shards end in .json
#: too, and are left out.
_CONFIG, _TABLES = (".json", ".txt"), "*.safetensors.index*.json"


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


def config_of(spec: ModelSpec) -> str:
    """The path or hub id of a model's configuration; raises `ModelLoadError` where it needs one."""
    if not spec.is_single_file or spec.config:
        return spec.config or spec.path
    return SingleFile(spec.path).config(spec)


def missing(spec: ModelSpec) -> list[str]:
    """The hub ids of what is not on this machine, the model's or its configuration's first."""
    found = [each for each in _additions(spec) if not (is_local(each) or _has_weights(each))]
    try:
        model = config_of(spec)
    except ModelLoadError:  # raised when it is loaded
        model = spec.path
    if not is_local(model):
        folder = local(model)
        if folder is None or _lacks_files(spec, folder):
            found.insert(0, model)
    return found


def inspect(spec: ModelSpec, folder: Path) -> ModelFiles:
    """Check the folder of a model, or of a single file's configuration."""
    return model_files.inspect(
        folder,
        safety_checker=spec.safety_checker and not spec.is_single_file,
        variant=spec.variant,
        weights=not spec.is_single_file,
    )


def _lacks_files(spec: ModelSpec, folder: Path) -> bool:
    """Whether a download may help; it does not where the index is of a model that is not served."""
    try:
        model_json.read_index(folder)
    except ModelLoadError as error:
        return error.retryable
    return bool(inspect(spec, folder).faults)


def download(spec: ModelSpec) -> None:
    """Download what is not here yet; raises `ModelLoadError`. A hub that is silent may block it."""
    began_s = time.perf_counter()
    try:
        if not (repositories := missing(spec)):
            return
        logger.info("downloading %s from the hub for model %s", ", ".join(repositories), spec.path)
        for repository in repositories:
            _fetch(spec, repository)
    except ModelLoadError:
        raise
    except Exception as error:  # the hub's client raises anything
        raise load_error(spec, error) from error
    logger.info("downloaded model %s in %.1f s", spec.path, time.perf_counter() - began_s)


def _fetch(spec: ModelSpec, repository: str) -> None:
    if repository in _additions(spec):
        with _errors_say(f"its LoRA or textual inversion, {repository}, could not be downloaded"):
            snapshot_download(repository, allow_patterns=_WEIGHTS)
    elif not spec.is_single_file:
        _download_model(spec)
    else:
        patterns = [f"*{end}" for end in _CONFIG]
        what = f"its configuration, {repository}, could not be downloaded"
        with _errors_say(f"{what} (set its config to a folder to need no hub)"):
            snapshot_download(repository, allow_patterns=patterns, ignore_patterns=_TABLES)


@contextmanager
def _errors_say(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise OSError(f"{what}: {error}") from error


def _download_model(spec: ModelSpec) -> None:
    """Download the files that are loaded, of the variant if there is one, and no others."""
    files = [each.rfilename for each in HfApi().model_info(spec.path).siblings or ()]
    if not spec.safety_checker:
        files = [file for file in files if not file.startswith("safety_checker/")]
    by_part = {
        part: [file.removeprefix(f"{part}/") for file in files if file.startswith(f"{part}/")]
        for part in weight_files.STEMS
    }
    is_flat = not by_part["unet"]  # early pixel-space models have the UNet beside their index
    if is_flat:
        by_part = {"unet": [file for file in files if "/" not in file]}
    variants = {part: weight_files.variant_of(by_part[part], spec.variant) for part in by_part}
    if spec.variant and not any(variants.values()):
        message = f"model {spec.path!r} has no weights of variant {spec.variant!r} on the hub"
        raise ModelLoadError(message, retryable=False)
    wanted = [file for file in files if file.endswith(_CONFIG) and not fnmatch(file, _TABLES)]
    for part, names in by_part.items():
        place = "" if is_flat else f"{part}/"
        wanted += [f"{place}{each}" for each in weight_files.chosen(part, names, variants[part])]
    snapshot_download(spec.path, allow_patterns=list(map(glob.escape, wanted)))


def _additions(spec: ModelSpec) -> list[str]:
    loras = (*spec.lora, *spec.adapters.values())
    return [each.path for each in loras] + [each.path for each in spec.textual_inversion]


def _has_weights(path: str) -> bool:
    folder = local(path)
    return folder is not None and any(folder.glob(_WEIGHTS))
