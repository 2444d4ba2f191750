"""Which devices the machine has, and which worker gets which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from worker import gpu
from worker.supervisor import environments

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TWO = "0, GPU-aaaa, NVIDIA H100 80GB HBM3, 81559\n1, GPU-bbbb, NVIDIA H100 80GB HBM3, 81559\n"
FIRST = {"CUDA_VISIBLE_DEVICES": "GPU-aaaa", "SAG_DEVICE": "cuda:0"}
SECOND = {"CUDA_VISIBLE_DEVICES": "GPU-bbbb", "SAG_DEVICE": "cuda:0"}


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make `nvidia-smi` answer what is given; without a call there is no driver."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def answer(text: str, status: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        (tmp_path / "answer").write_text(text)
        lines = f'while read -r line; do echo "$line"; done < {tmp_path}/answer\nexit {status}\n'
        program.write_text(f"#!/bin/sh\n{lines}")
        program.chmod(0o755)

    return answer


def test_each_gpu_gets_a_worker_of_its_own(driver: Callable[..., None]) -> None:
    """`auto` starts one worker a GPU, pinned by UUID, so that renumbering can't swap two."""
    driver(TWO)
    assert environments("auto", []) == {"gpu0": FIRST, "gpu1": SECOND}
    assert gpu.resolve("auto") == "cuda:0"
    assert gpu.list_gpus()[1] == gpu.Gpu(1, "GPU-bbbb", "NVIDIA H100 80GB HBM3", 81559)


def test_a_device_may_have_several_workers(driver: Callable[..., None]) -> None:
    """`--workers 2` is two workers with names of their own on each device."""
    driver(TWO)
    assert environments("auto", [1], workers=2) == {"gpu1-1": SECOND, "gpu1-2": SECOND}
    assert sorted(environments("auto", [], workers=2)) == ["gpu0-1", "gpu0-2", "gpu1-1", "gpu1-2"]
    cpu = {"SAG_DEVICE": "cpu"}
    assert environments("cpu", [], workers=3) == {"cpu-1": cpu, "cpu-2": cpu, "cpu-3": cpu}
    assert environments("cpu", [], workers=1) == {"cpu": cpu}


def test_chosen_gpus_are_the_ones_that_work(driver: Callable[..., None]) -> None:
    """`--gpu 1` starts a worker on that GPU alone, whatever `SAG_DEVICE` says."""
    driver(TWO)
    assert environments("auto", [1]) == {"gpu1": SECOND}
    assert environments("cuda:0", [1, 0]) == {"gpu1": SECOND, "gpu0": FIRST}


@pytest.mark.parametrize("gpus", [[2], [0, 5], [-1]])
def test_a_gpu_that_is_not_there_is_an_error(driver: Callable[..., None], gpus: list[int]) -> None:
    """A wrong index stops the start and names what there is."""
    driver(TWO)
    with pytest.raises(ValueError, match=rf"no GPU {gpus[-1]}.*\[0, 1\]"):
        environments("auto", gpus)


@pytest.mark.parametrize("gpus", [[], [0]])
def test_without_a_driver_it_is_the_cpu(driver: Callable[..., None], gpus: list[int]) -> None:
    """`auto` without GPUs is one worker on the CPU; asking for a GPU there is an error."""
    assert gpu.list_gpus() == []
    assert gpu.resolve("auto") == "cpu"
    if gpus:
        with pytest.raises(ValueError, match="none"):
            environments("auto", gpus)
    else:
        assert environments("auto", gpus) == {"cpu": {"SAG_DEVICE": "cpu"}}


def test_a_driver_that_fails_is_an_error(driver: Callable[..., None]) -> None:
    """A GPU host whose driver is broken says so: it would serve on its CPU, unnoticed."""
    driver("Failed to initialize NVML: Driver/library version mismatch\n", 18)
    with pytest.raises(RuntimeError, match=r"version mismatch.*SAG_DEVICE=cpu"):
        environments("auto", [])
    assert environments("cpu", []) == {"cpu": {"SAG_DEVICE": "cpu"}}
    driver("No devices were found\n", 6)
    assert environments("auto", []) == {"cpu": {"SAG_DEVICE": "cpu"}}


@pytest.mark.parametrize(
    ("named", "workers"),
    [
        ("1", ["gpu1"]),
        ("1,0", ["gpu0", "gpu1"]),
        ("GPU-bb", ["gpu1"]),
        ("", ["cpu"]),
        ("7", ["cpu"]),
    ],
)
def test_gpus_that_are_hidden_are_not_used(
    driver: Callable[..., None], monkeypatch: pytest.MonkeyPatch, named: str, workers: list[str]
) -> None:
    """`CUDA_VISIBLE_DEVICES` is somebody's decision; the start keeps to it."""
    driver(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert sorted(environments("auto", [])) == workers


def test_memory_that_the_driver_does_not_tell(driver: Callable[..., None]) -> None:
    """A GPU that shares the host's memory says `[N/A]` for it, and is a GPU none the less."""
    driver("0, GPU-aaaa, NVIDIA GB10, [N/A]\n")
    assert environments("auto", []) == {"gpu0": FIRST}


@pytest.mark.parametrize(
    ("device", "name"), [("cpu", "cpu"), ("cuda:1", "cuda1"), ("cuda", "cuda")]
)
def test_a_device_by_name_is_one_worker(
    driver: Callable[..., None], device: str, name: str
) -> None:
    """A device that was named is taken as it is, and no driver is asked."""
    assert environments(device, []) == {name: {"SAG_DEVICE": device}}


@pytest.mark.parametrize(
    ("device", "expected"), [("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_a_name_resolves(driver: Callable[..., None], device: str, expected: str) -> None:
    """`cuda` is the first GPU; a full name is itself."""
    assert gpu.resolve(device) == expected
