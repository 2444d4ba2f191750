"""What a model needs of the hub is downloaded before it is loaded, once and nothing else."""

from __future__ import annotations

import errno
import shutil
import threading
from contextlib import ExitStack
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from tests.engine import original_layout
from tests.engine.hub_server import REMOTE, Hub
from tests.engine.jobs import SPEC
from tests.engine.small_models import save_pixels
from worker import embedded
from worker.config.models import Adapter, Lora, ModelSpec
from worker.engine.loading import hub, model_loader
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], list[str]]]:
    """Serve a folder's files as those of any repository; returns which are asked for."""
    with ExitStack() as servers:

        def start(folder: Path) -> list[str]:
            asked: list[str] = []
            handler = type("Handler", (Hub,), {"folder": folder, "asked": asked})
            server = servers.enter_context(ThreadingHTTPServer((embedded.LOOPBACK, 0), handler))
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            servers.callback(server.shutdown)
            address = f"http://{embedded.LOOPBACK}:{server.server_port}"
            monkeypatch.setattr(constants, "ENDPOINT", address)
            files = address + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
            return asked

        yield start


@pytest.fixture
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, and beside its files those that are not loaded."""
    folder = tmp_path_factory.mktemp("hub") / "files"
    shutil.copytree(SPEC.path, folder)
    for name in UNUSED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"unused")
    return folder


UNUSED = (
    "all-in-one.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.fp16.json", "unet/openvino_model.safetensors",
    "unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors",
)  # fmt: skip


def test_a_model_is_downloaded_once(serve: Callable[[Path], list[str]], repository: Path) -> None:
    """A download gets a model's own files once, without other precisions, pickles or the unused."""
    asked = serve(repository)
    hub.download(REMOTE)
    assert not hub.missing(REMOTE)
    hub.download(REMOTE)
    assert len(asked) == len(set(asked)) > 8
    assert not set(asked) & set(UNUSED)
    assert model_loader.load(REMOTE, "cpu", "none").pipeline.unet is not None


@pytest.mark.parametrize("shards", [False, True])
def test_a_variant_is_downloaded_alone(
    serve: Callable[[Path], list[str]], repository: Path, shards: bool
) -> None:
    """With a variant its files are downloaded, and of a part without it the plain ones."""
    unet = repository / "unet"
    for name in UNUSED:
        (repository / name).unlink()
    own = unet / "diffusion_pytorch_model.safetensors"
    if shards:
        pipe = model_loader.load(SPEC, "cpu", "none").pipeline
        pipe.unet.save_pretrained(unet, variant="fp16", max_shard_size="8MB")
    else:
        shutil.copy(own, own.with_suffix(".fp16.safetensors"))
    spec = REMOTE.model_copy(update={"variant": "fp16"})
    asked = serve(repository)
    hub.download(spec)
    assert not hub.missing(spec)
    weights = {name for name in asked if "diffusion_pytorch_model" in name or "model.s" in name}
    wanted = {f"unet/{each.name}" for each in unet.glob("*fp16*")}
    assert (len(wanted) > 2) is shards
    assert weights == wanted | {
        "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
    }  # fmt: skip
    assert model_loader.load(spec, "cpu", "none").pipeline.unet is not None


def test_a_variant_that_the_hub_lacks_is_final(
    serve: Callable[[Path], list[str]], repository: Path
) -> None:
    """No other weights are downloaded in its place."""
    asked = serve(repository)
    with pytest.raises(ModelLoadError, match="no weights of variant 'bf16'") as failed:
        hub.download(REMOTE.model_copy(update={"variant": "bf16"}))
    assert not failed.value.retryable
    assert asked == []


@pytest.fixture
def single_file(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """The bundled model as one file, without a setting for its configuration."""
    file = tmp_path_factory.mktemp("file") / "model.safetensors"
    original_layout.save(original_layout.tensors_of(Path(SPEC.path)), file)
    return SPEC.model_copy(update={"path": str(file)})


def test_a_configuration_is_downloaded_without_weights(
    serve: Callable[[Path], list[str]], repository: Path, single_file: ModelSpec
) -> None:
    """A checkpoint in one file needs nothing of the hub but texts, once."""
    asked = serve(repository)
    assert hub.missing(single_file)
    hub.download(single_file)
    assert not hub.missing(single_file)
    hub.download(single_file)
    assert len(asked) == len(set(asked)) > 5
    assert {name.rpartition(".")[2] for name in asked} <= {"json", "txt"}
    assert not [name for name in asked if "safetensors" in name]
    assert model_loader.load(single_file, "cpu", "none").pipeline.unet is not None


def test_a_configuration_that_can_not_be_downloaded_is_named(
    single_file: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a hub the error names the repository and the setting that makes it unnecessary."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match=r"stable-diffusion-v1-5.*set its config to a folder"):
        hub.download(single_file)


def test_an_addition_that_can_not_be_downloaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the repository of the LoRA, not that of the model alone."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    spec = SPEC.model_copy(update={"adapters": {"ink": Adapter(path="owner/lora")}})
    with pytest.raises(ModelLoadError, match="LoRA or textual inversion, owner/lora, could not"):
        hub.download(spec)


def test_a_cache_that_can_not_be_read_fails_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails while the cache is looked into gives the error of a model, to retry."""

    def fail(_: str) -> Path:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(hub, "local", fail)
    with pytest.raises(ModelLoadError, match="owner/name") as failed:
        hub.download(REMOTE)
    assert failed.value.retryable


def test_loading_asks_no_hub(single_file: ModelSpec) -> None:
    """What is not downloaded is an error at once, also where the hub would never answer."""
    lora = SPEC.model_copy(update={"lora": (Lora(path="owner/lora"),)})
    for spec in (REMOTE, lora, single_file):
        with pytest.raises(ModelLoadError, match="is not downloaded"):
            model_loader.load(spec, "cpu", "none")


def test_a_flat_model_of_pixels_is_downloaded(
    serve: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    """One with its UNet beside the index is downloaded and loaded, without its pickled weights."""
    folder = save_pixels(tmp_path / "flat")
    for file in [*folder.rglob("*.*")]:
        file.rename(folder / file.name)
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    asked = serve(folder)
    spec = ModelSpec(path="owner/flat", safety_checker=False)
    hub.download(spec)
    assert not hub.missing(spec)
    assert not [each for each in asked if each.endswith(".bin")]
    model_loader.load(spec, "cpu", "none")
