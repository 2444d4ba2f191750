"""Which failures to load a model may pass by themselves."""

from __future__ import annotations

import errno
import json
import shutil
from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NoReturn

import httpx2
import pytest
from diffusers import StableDiffusionPipeline
from huggingface_hub.errors import OfflineModeIsEnabled

from tests.engine import original_layout
from worker.config.models import SHIPPED_MODEL, ModelSpec
from worker.engine.loading import model_loader
from worker.engine.loading.load_errors import may_pass
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLE = Path(SHIPPED_MODEL)


def wrapped(cause: BaseException) -> OSError:
    """An error that diffusers raises for this cause."""
    error = OSError("Can't load the model")
    error.__cause__ = cause
    return error


def answered(status: int) -> Exception:
    """The error that the hub's client raises for an HTTP status."""
    error = Exception(f"{status}")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    "cause",
    [
        OSError(errno.EIO, "Input/output error"), OSError(errno.ENOSPC, "No space left"),
        OSError(errno.ESTALE, "Stale file handle"), OSError(-3, "Temporary failure in name"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"), TimeoutError("timed out"),
        MemoryError(), answered(503), answered(429),
        IncompleteRead(b""), httpx2.RemoteProtocolError("disconnected"), httpx2.ProxyError("503"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"),
        Exception("Too many open files (os error 24)"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_disk_or_network_that_fails_may_recover(cause: Exception) -> None:
    """A failure of disk, network or memory may pass, however deep the cause is."""
    assert may_pass(cause)
    assert may_pass(wrapped(wrapped(cause)))


@pytest.mark.parametrize(
    "cause",
    [
        FileNotFoundError(errno.ENOENT, "No such file"), PermissionError(errno.EACCES, "denied"),
        OSError("Error no file named config.json found"), KeyError("_class_name"),
        ValueError("expected shape"), Exception("No such file or directory (os error 2)"),
        OfflineModeIsEnabled("offline"), answered(404), answered(401),
    ],
    ids=repr,
)  # fmt: skip
def test_missing_or_broken_files_stay_so(cause: Exception) -> None:
    """A missing or broken file is no failure that may pass, however deep the cause is."""
    assert not may_pass(cause)
    assert not may_pass(wrapped(cause))


def copy(folder: Path) -> Path:
    return Path(shutil.copytree(EXAMPLE, folder / "model"))


def remove(folder: Path) -> Path:
    return folder / "model"


def empty_index(folder: Path) -> Path:
    path = copy(folder)
    (path / "model_index.json").write_text("{}")
    return path


def cut_weights(folder: Path) -> Path:
    path = copy(folder)
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return path


def no_weights(folder: Path) -> Path:
    path = copy(folder)
    (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return path


def another_kind(folder: Path) -> Path:
    path = copy(folder)
    config = path / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "flow"}))
    return path


@pytest.mark.parametrize("spoil", [remove, empty_index, cut_weights, no_weights, another_kind])
def test_a_model_that_can_not_be_loaded_is_final(
    spoil: Callable[[Path], Path], tmp_path: Path
) -> None:
    """The error of a model that can't be loaded names its path and is not retryable."""
    path = spoil(tmp_path)
    with pytest.raises(ModelLoadError) as failed:
        model_loader.load(ModelSpec(path=str(path), safety_checker=False), "cpu", "none")
    assert not failed.value.error.retryable
    assert str(path) in failed.value.error.message


def test_the_error_says_what_to_do(tmp_path: Path) -> None:
    """The error of a model names `SAG_MODELS` and `doctor`, and asks for a new submission."""
    with pytest.raises(ModelLoadError, match=r"SAG_MODELS.*sag-worker doctor.*submit"):
        model_loader.load(ModelSpec(path=str(tmp_path), safety_checker=False), "cpu", "none")


def test_a_disk_that_fails_is_not_final(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails while a model is loaded gives a retryable error."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise wrapped(OSError(errno.EIO, "Input/output error"))

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", fail)
    with pytest.raises(ModelLoadError) as failed:
        model_loader.load(ModelSpec(path=str(EXAMPLE), safety_checker=False), "cpu", "none")
    assert failed.value.error.retryable


@pytest.fixture
def single_file(tmp_path: Path) -> ModelSpec:
    """The bundled model as one file, with the bundled folder as its configuration."""
    tensors = original_layout.tensors_of(EXAMPLE)
    file = original_layout.save(tensors, tmp_path / "model.safetensors")
    return ModelSpec(path=str(file), config=str(EXAMPLE), safety_checker=False)


@pytest.mark.parametrize(
    "cause",
    [MemoryError("no memory"), OSError(errno.EIO, "no disk"), ConnectionError("no network")],
    ids=repr,
)
def test_a_single_file_is_not_blamed(
    single_file: ModelSpec, monkeypatch: pytest.MonkeyPatch, cause: Exception
) -> None:
    """Memory, disk or network that fail while a file is read are named, and not the file."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise cause

    monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", fail)
    with pytest.raises(ModelLoadError, match=str(cause.args[-1])) as failed:
        model_loader.load(single_file, "cpu", "none")
    assert failed.value.retryable
    assert "lacks weights" not in failed.value.message


@pytest.mark.parametrize(("number", "retryable"), [(errno.EIO, True), (errno.EACCES, False)])
@pytest.mark.parametrize("name", ["model_index.json", "scheduler_config.json"])
def test_a_config_that_cannot_be_read(
    single_file: ModelSpec,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    number: int,
    retryable: bool,
) -> None:
    """A disk that fails while a configuration is read is not final; a missing right is."""
    read = Path.read_text

    def fail(path: Path, **options: str) -> str:
        if path.name == name:
            raise OSError(number, "not read")
        return read(path, **options)

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(ModelLoadError, match=f"{name} cannot be read: .* not read") as failed:
        model_loader.load(single_file, "cpu", "none")
    assert failed.value.retryable is retryable


def test_a_device_that_fails_is_not_final(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that fails while a model is placed gives a retryable error: the files are fine."""

    def fail(*_: object) -> NoReturn:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(model_loader, "_place", fail)
    with pytest.raises(ModelLoadError, match="could not be placed on cpu") as failed:
        model_loader.load(ModelSpec(path=str(EXAMPLE), safety_checker=False), "cpu", "none")
    assert failed.value.error.retryable
