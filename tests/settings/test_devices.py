"""Which devices the machine has, and which worker gets which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from worker import devices
from worker.config.settings import Settings
from worker.doctor import servers
from worker.doctor.checks import examine, memory
from worker.doctor.checks import models as examine_models
from worker.doctor.model_files import weights_bytes
from worker.supervisor.supervisor import environments

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TWO = (
    "0, GPU-aaaa, NVIDIA H100 80GB HBM3, 81559, 81004\n"
    "1, GPU-bbbb, NVIDIA H100 80GB HBM3, 81559, 12\n"
)
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
    assert devices.resolve("auto") == "cuda:0"
    assert devices.list_gpus()[1] == devices.Gpu(1, "GPU-bbbb", "NVIDIA H100 80GB HBM3", 81559, 12)


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
    assert devices.list_gpus() == []
    assert devices.resolve("auto") == "cpu"
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
    driver("0, GPU-aaaa, NVIDIA GB10, [N/A], [N/A]\n")
    assert environments("auto", []) == {"gpu0": FIRST}
    told = memory("model x", {"unet": 2**40}, "auto", "none", devices.list_gpus()[0])
    assert told.ok
    assert "not compared" in told.found


def test_doctor_compares_with_the_smallest_gpu_that_is_used(driver: Callable[..., None]) -> None:
    """Of those that `SAG_DEVICE` may mean; on the CPU there is nothing to compare."""
    driver(TWO + "2, GPU-cccc, NVIDIA T4, 1, 1\n")

    def told(device: str, offload: str = "model") -> list[str]:
        found = examine_models(Settings(device=device, offload=offload), devices.list_gpus())
        return [each.found for each in found if each.what == "model default memory"]

    assert [text.partition(";")[2] for text in told("auto")] == [" NVIDIA T4 has 1 MiB, 1 free"]
    (second,) = told("cuda:1")
    assert second.startswith("6 MiB of weights at once in float16; NVIDIA H100 80GB HBM3 has 81559")
    assert told("cpu") == told("auto", "sequential") == told("cuda:9") == []


@pytest.mark.parametrize("device", ["auto", "cuda:1", "cpu"])
@pytest.mark.parametrize("status", [0, 18])
def test_doctor_asks_the_driver_once(
    driver: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    device: str, status: int,
) -> None:  # fmt: skip
    """For all that it says of device and memory; one that fails is told, and the rest looked at."""
    monkeypatch.setattr(servers, "redis", lambda _: [])
    monkeypatch.setattr(servers, "s3", lambda _: [])
    driver(TWO, status)
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"{program.read_text()}".replace("while", f"echo >> {tmp_path}/asked\nwhile")
    )
    told = {each.what: each for each in examine(Settings(device=device))}
    assert (tmp_path / "asked").read_text() == "\n"
    assert told["model default"].ok
    assert ("model default memory" in told) is (device != "cpu" and not status)
    if status:
        assert (told["device"].ok, told["device"].fix) == (False, "repair the driver")


@pytest.mark.parametrize(
    ("offload", "total_mib", "free_mib", "ok", "says"),
    [
        ("model", 2000, 2000, True, "1639 MiB of weights at once in float16"),
        ("auto", 2000, 2000, True, "1639 MiB"),
        ("model", 1638, 1638, False, "SAG_OFFLOAD=sequential"),
        ("model", 2000, 1638, True, "no room beside"),
        ("none", 1900, 1900, False, "SAG_OFFLOAD=model"),
        ("none", 2100, 2100, True, "2034 MiB"),
    ],
)
def test_what_must_fit_into_a_gpu(
    offload: str, total_mib: int, free_mib: int, ok: bool, says: str
) -> None:
    """The largest part of a model, all parts without offload. Never fits: a fault. Now: a remark.

    The numbers are those of Stable Diffusion 1.5.
    """
    numbers = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
    told = memory("model x", numbers, "auto", offload, devices.Gpu(0, "", "T", total_mib, free_mib))
    assert told.ok is ok
    assert says in told.found + told.fix
    assert ("no room" in told.found) == (says == "no room beside")


def test_weights_take_what_their_precision_takes() -> None:
    """Four bytes a number in float32; what goes layer by layer is never there as a whole."""
    numbers = {"unet": 10, "vae": 5}
    assert weights_bytes(numbers, "float32", "none") == 60
    assert weights_bytes(numbers, "bfloat16", "model") == 20
    assert weights_bytes(numbers, "float16", "sequential") == 0


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
    assert devices.resolve(device) == expected
