"""What `doctor` reports of models that are incomplete, and of the hub."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from tests.settings.findings import models
from worker import embedded
from worker.config.models import SHIPPED_MODEL, Adapter, Lora, ModelSpec, TextualInversion
from worker.doctor import hub
from worker.doctor.checks import check_models

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from worker.config.settings import Settings


def test_a_missing_model_file_is_reported(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing folder, part, LoRA or textual inversion is named with its model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    spec = ModelSpec(
        path=str(SHIPPED_MODEL),
        lora=(Lora(path="/no/lora.safetensors"), Lora(path="some/hub-id")),
        adapters={"ink": Adapter(path="/no/ink.safetensors")},
        textual_inversion=(TextualInversion(path="/no/word", token="<w>"),),
    )
    paths = {"b": ModelSpec(path="/nowhere"), "c": ModelSpec(path="hub/models--a--b")}
    broken = settings.model_copy(update={"models": {"a": spec, **paths}})
    findings = [each for each in check_models(broken) if not each.ok]
    assert [(each.what, each.found.rpartition(": ")[2]) for each in findings] == [
        ("model a", "model_index.json names no safety_checker"),
        ("model a", "/no/lora.safetensors is not there"),
        ("model a hub", "some/hub-id is not whole in the cache, and HF_HUB_OFFLINE is set"),
        ("model a", "/no/ink.safetensors is not there"),
        ("model a", "/no/word is not there"),
        ("model b", "/nowhere is not there"),
        ("model c", "hub/models--a--b is not there"),
    ]
    assert all("SAG_MODELS" in each.fix for each in findings)


def test_what_a_family_lacks_is_reported(settings: Settings, tmp_path: Path) -> None:
    """Settings that the model's family does not have are named, as when it is loaded."""
    from tests.engine.small_models import save_pixels

    folder = str(save_pixels(tmp_path / "pixels"))
    spec = ModelSpec(path=folder, vae_tiling=True, lora=(Lora(path="/no/a"),))
    whole, *findings = models(settings, a=spec)
    assert whole.ok
    assert [each.found for each in findings] == [
        "is a pixel-space model, which takes no `lora`",
        "is a pixel-space model, which takes no `vae_tiling`",
        "/no/a is not there",
    ]


def test_a_variant_of_a_folder_is_reported(settings: Settings, tmp_path: Path) -> None:
    """A folder of one variant is whole with the setting, and without it the setting is named."""
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED_MODEL, folder)
    for file in list(folder.glob("*/*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))
    ok, bad = models(
        settings,
        a=ModelSpec(path=str(folder), variant="fp16"),
        b=ModelSpec(path=str(folder)),
    )
    assert (ok.ok, bad.ok) == (True, False)
    assert "that of variant fp16 is: set the model's variant" in bad.found


REMOTE = ModelSpec(path="owner/name")


@pytest.mark.slow  # the hub's client takes a second to import
def test_a_hub_is_asked_for_what_is_not_in_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that never answers, and a forbidden one, are named with what to check."""
    monkeypatch.setattr(hub, "HUB_TIMEOUT_S", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server((embedded.LOOPBACK, 0)) as silent:
        monkeypatch.setattr(
            constants, "ENDPOINT", f"http://{embedded.LOOPBACK}:{silent.getsockname()[1]}"
        )
        found = hub.check_hub("model a hub", REMOTE, "owner/name")
    assert (found.ok, "HF_ENDPOINT" in found.fix) == (False, True)
    assert constants.ENDPOINT in found.found
    assert "imeout" in found.found
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in hub.check_hub("model a hub", REMOTE, "owner/name").found


@pytest.fixture
def unreadable(tmp_path: Path) -> Iterator[Path]:
    """A folder that this user may not read; root may, so it becomes another user."""
    import_module("huggingface_hub.hf_api")  # Python's own files may be for root alone
    (tmp_path / "closed" / "model").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield tmp_path / "closed" / "model"
    if root:
        os.seteuid(0)
    (tmp_path / "closed").chmod(0o700)


@pytest.mark.parametrize("addition", [False, True])
def test_a_model_that_cannot_be_read_is_reported(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, unreadable: Path, addition: bool
) -> None:
    """A folder or LoRA without permission, or a name that is too long, does not end the checks."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/")
    lora = (Lora(path=str(unreadable)),) if addition else ()
    spec = ModelSpec(path="owner/name" if addition else str(unreadable), lora=lora)
    longer = ModelSpec(path=f"/{'x' * 300}")
    broken = settings.model_copy(update={"models": {"a": spec, "b": longer}})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = {each.what: each for each in check_models(broken) if not each.ok}
    found.pop("model a hub", None)
    assert list(found) == ["model a", "model b"]
    assert str(unreadable) in found["model a"].found
    assert all("SAG_MODELS" in each.fix for each in found.values())


def test_disk_space_is_that_of_the_hub_cache(tmp_path: Path) -> None:
    """The disk space is that of the hub's cache, also where that folder does not exist yet."""
    program = (
        "import importlib, os, sys\n"
        "from huggingface_hub import constants\n"
        "from worker.config.settings import Settings\n"
        "from worker.doctor.checks import check_models\n"
        "for variable, home in zip(sys.argv[1::2], sys.argv[2::2]):\n"
        "    os.environ[variable] = home\n"
        "    importlib.reload(constants)\n"
        "    found, _ = check_models(Settings(models={'a': {'path': 'owner/name'}}))\n"
        "    assert found.ok and 'torch' not in sys.modules; print(found.found)\n"
    )
    caches = {"HOME": ".cache/huggingface/hub", "HF_HOME": "hub"}  # HF_HOME overrides HOME
    arguments, places = [], []
    for variable, cache in caches.items():
        home = tmp_path / variable
        (home / "full" / cache).mkdir(parents=True)
        arguments += [variable, str(home / "full"), variable, str(home / "not" / "yet")]
        places += [home / "full" / cache, home]
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG"))
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=plain | {"HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert [line.rpartition(" GiB free at ")[2] for line in lines] == list(map(str, places))
