"""What is in the hub's cache is loaded without the hub; what is not is downloaded before."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar

import pytest
from huggingface_hub import constants

from tests.engine.jobs import SPEC
from worker import embedded
from worker.config.models import Adapter, Lora, ModelSpec
from worker.engine.loading import hub, model_loader
from worker.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMIT = "c" * 40
REMOTE = SPEC.model_copy(update={"path": "owner/name"})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a hub that accepts connections and never answers."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 600)
    with socket.create_server((embedded.LOOPBACK, 0)) as silent:
        address = f"http://{embedded.LOOPBACK}:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        yield tmp_path


def cached(cache: Path, repository: str) -> Path:
    """The empty folder of a repository's files in the cache, as the hub's client makes it."""
    there = cache / f"models--{repository.replace('/', '--')}"
    (there / "refs").mkdir(parents=True)
    (there / "refs" / "main").write_text("c0")
    (there / "snapshots" / "c0").mkdir(parents=True)
    return there / "snapshots" / "c0"


class _Hub(BaseHTTPRequestHandler):
    """Serves the files of `folder` as those of any repository, and notes which were asked for."""

    protocol_version = "HTTP/1.1"
    folder: Path
    asked: ClassVar[list[str]] = []

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        files = [each for each in self.folder.rglob("*") if each.is_file()]
        if path.endswith(f"/tree/{COMMIT}"):
            listed = [
                {"type": "file", "path": str(each.relative_to(self.folder)), "oid": COMMIT,
                 "size": each.stat().st_size}
                for each in files
            ]  # fmt: skip
            self._answer(json.dumps(listed).encode())
        elif path.startswith("/api/models/"):
            names = [{"rfilename": str(each.relative_to(self.folder))} for each in files]
            model = {"id": "owner/name", "sha": COMMIT, "siblings": names}
            self._answer(json.dumps(model).encode())
        elif name := path.partition(f"/resolve/{COMMIT}/")[2]:
            if self.command == "GET":
                self.asked.append(name)
            self._answer((self.folder / name).read_bytes())
        else:
            self._answer(b"{}")

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET  # noqa: N815  # http.server calls it so


def test_a_model_is_downloaded_once(
    cache: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download gets a model's own files once, without other precisions, pickles or the unused."""
    folder = tmp_path_factory.mktemp("hub") / "files"
    shutil.copytree(SPEC.path, folder)
    unused = (
        "all-in-one.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors",
    )  # fmt: skip
    for name in unused:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"unused")
    asked: list[str] = []
    handler = type("Handler", (_Hub,), {"folder": folder, "asked": asked})
    with ThreadingHTTPServer((embedded.LOOPBACK, 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f"http://{embedded.LOOPBACK}:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        files = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        hub.download(REMOTE)
        assert hub.is_complete(REMOTE)
        hub.download(REMOTE)
        server.shutdown()
    assert len(asked) == len(set(asked)) > 8
    assert not set(asked) & set(unused)
    assert model_loader.load(REMOTE, "cpu", "none").pipeline.unet is not None


def test_a_cached_model_needs_no_hub(cache: Path) -> None:
    """A model in the cache is complete and is loaded without the hub."""
    shutil.copytree(SPEC.path, cached(cache, "owner/name"), dirs_exist_ok=True)
    assert hub.is_complete(REMOTE)
    hub.download(REMOTE)
    assert model_loader.load(REMOTE, "cpu", "none").pipeline.unet is not None


def test_a_part_of_a_model_is_no_model(cache: Path) -> None:
    """A model that lacks a file, as after an interrupted download, is not complete."""
    assert not hub.is_complete(REMOTE)
    model = cached(cache, "owner/name")
    shutil.copytree(SPEC.path, model, dirs_exist_ok=True)
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert not hub.is_complete(REMOTE)


def test_additions_are_downloaded_too(cache: Path) -> None:
    """LoRA weights, those by request too, of a hub belong to what a model needs."""
    spec = SPEC.model_copy(update={"adapters": {"ink": Adapter(path="owner/lora")}})
    assert not hub.is_complete(spec)
    spec = SPEC.model_copy(update={"lora": (Lora(path="owner/lora"),)})
    assert not hub.is_complete(spec)
    weights = cached(cache, "owner/lora") / "pytorch_lora_weights.safetensors"
    assert not hub.is_complete(spec)
    weights.write_bytes(b"")
    assert hub.is_complete(spec)
    assert hub.local("owner/lora") == weights.parent


def test_loading_asks_no_hub() -> None:
    """What is not downloaded is an error at once, also where the hub would never answer."""
    for spec in (REMOTE, SPEC.model_copy(update={"lora": (Lora(path="owner/lora"),)})):
        with pytest.raises(ModelLoadError, match="is not downloaded"):
            model_loader.load(spec, "cpu", "none")


def test_paths_are_complete() -> None:
    """A model given by a path counts as complete, also a missing one, which only loading finds."""
    assert hub.is_complete(SPEC)
    assert hub.is_complete(ModelSpec(path="/nowhere"))
