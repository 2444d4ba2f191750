"""Checks what the path of a model leads to: a folder, one file, or a hub id."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from worker.config.models import is_hub_id, is_local
from worker.doctor.finding import Finding
from worker.doctor.hub import check_hub
from worker.engine.loading import model_files, single_file
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from worker.config.models import ModelSpec
    from worker.engine.loading.model_files import ModelFiles

#: What to do about a path that leads nowhere.
MISSING_PATH_FIX = "set its path in SAG_MODELS to one on this machine, or to a hub id (owner/name)"
_FOLDER_FIX = "add the files, or set SAG_MODELS to a folder in diffusers' layout"
_FILE_FIX = "set its path in SAG_MODELS to a .safetensors checkpoint of Stable Diffusion 1, 2 or XL"
_CONFIG_FIX = "set its config in SAG_MODELS to a folder in diffusers' layout, or to a hub id"


def check_path(what: str, spec: ModelSpec) -> tuple[list[Finding], ModelFiles | None]:
    """The findings, and the weights where they are on this machine; raises OSError."""
    path = Path(spec.path)
    if path.is_dir():
        files = model_files.inspect(path, safety_checker=spec.safety_checker, variant=spec.variant)
        found = f"{path}: {'; '.join(files.faults) or 'every file is there'}"
        return [Finding(what, ok=not files.faults, found=found, fix=_FOLDER_FIX)], files
    if path.exists():
        return _check_file(what, spec)
    if is_hub_id(spec.path):
        return _check_repository(what, spec, spec.path), None
    found = f"{spec.path} is not there"
    return [Finding(what, ok=False, found=found, fix=MISSING_PATH_FIX)], None


def _check_file(what: str, spec: ModelSpec) -> tuple[list[Finding], ModelFiles | None]:
    """Check a checkpoint in one file, and its configuration, which may come from the hub."""
    from worker.engine.loading import hub  # noqa: PLC0415  # imports the hub's client

    if not spec.is_single_file:
        found = f"{spec.path} {single_file.why_unread(spec.path)}"
        return [Finding(what, ok=False, found=found, fix=_FILE_FIX)], None
    try:
        file = single_file.SingleFile(spec.path)
        config = file.config(spec)
    except ModelLoadError as error:
        found = f"{spec.path} {error.message}"
        return [Finding(what, ok=False, found=found, fix=_FILE_FIX)], None
    folder = hub.local(config)
    if is_local(config) and folder is None:
        found = f"{spec.path}: its config {config} is not there"
        return [Finding(what, ok=False, found=found, fix=_CONFIG_FIX)], None
    hub_findings: list[Finding] = []
    if not is_local(config):
        hub_findings = _check_repository(f"{what} config", spec, config)
        if folder is not None and hub.inspect(spec, folder).faults:
            folder = None  # not whole yet: the hub has the rest
    files = file.inspect(folder, safety_checker=spec.safety_checker)
    found = f"{spec.path} with the config {config}: {'; '.join(files.faults) or 'it is whole'}"
    return [Finding(what, ok=not files.faults, found=found, fix=_CONFIG_FIX), *hub_findings], files


def _check_repository(what: str, spec: ModelSpec, repository: str) -> list[Finding]:
    place = _hub_cache()
    free_gib = shutil.disk_usage(place).free / 2**30
    found = f"{repository} from the hub or its cache; {free_gib:.0f} GiB free at {place}"
    place_finding = Finding(what, ok=True, found=found)
    hub_finding = check_hub(f"{what} hub", spec, repository)
    return [place_finding, hub_finding, *_check_cached(what, spec, repository)]


def _check_cached(what: str, spec: ModelSpec, repository: str) -> list[Finding]:
    """What is wrong with a folder in the cache, where no download helps."""
    from worker.engine.loading import hub  # noqa: PLC0415  # imports the hub's client

    folder = hub.local(repository)
    if folder is None or repository in hub.missing(spec):
        return []
    if not (faults := hub.inspect(spec, folder).faults):
        return []
    return [Finding(what, ok=False, found=f"{repository}: {'; '.join(faults)}", fix=_FOLDER_FIX)]


def _hub_cache() -> Path:
    """Return the folder of the hub's cache, or its nearest parent that exists."""
    from huggingface_hub import constants  # noqa: PLC0415  # the worker extra

    cache = Path(constants.HF_HUB_CACHE).absolute()
    return next(each for each in (cache, *cache.parents) if each.exists())
