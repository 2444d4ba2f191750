"""`doctor` compares the weights of models with the memory of GPUs."""

from __future__ import annotations

import pytest

from tests.settings import nvml
from tests.settings.gpus import FIRST, TWO
from tests.settings.nvml import Device, Driver
from worker import devices
from worker.config.settings import Settings
from worker.devices import Gpu
from worker.doctor import servers
from worker.doctor.checks import check_memory, check_models, run_checks
from worker.engine.loading.model_files import ModelFiles
from worker.supervisor.supervisor import worker_environments

pytestmark = pytest.mark.usefixtures("driver")


def test_memory_that_the_driver_does_not_report(driver: Driver) -> None:
    """A GPU that shares the host's memory reports none, and is used all the same."""
    driver.has(Device("GPU-aaaa", "NVIDIA GB10", memory_mib=None))
    assert worker_environments("auto", []) == {"gpu0": FIRST}
    files = ModelFiles(parameters={"unet": 2**40})
    found = check_memory("model x", files, "auto", "none", devices.list_gpus()[0])
    assert found.ok
    assert "not compared" in found.found


def test_doctor_compares_with_the_smallest_gpu_that_is_used(driver: Driver) -> None:
    """`doctor` compares weights with the smallest GPU that `SAG_DEVICE` may mean."""
    driver.has(*TWO, Device("GPU-cccc", "NVIDIA T4", 1, 1))

    def found(device: str, offload: str = "model") -> list[str]:
        findings = check_models(Settings(device=device, offload=offload), devices.list_gpus())
        return [each.found for each in findings if each.what == "model default memory"]

    assert [text.partition(";")[2] for text in found("auto")] == [" NVIDIA T4 has 1 MiB, 1 free"]
    (second,) = found("cuda:1")
    assert second.startswith(
        "6 MiB of weights at once in float16, 9 MiB in all; NVIDIA H100 80GB HBM3 has 81559"
    )
    assert found("auto", "sequential")[0].startswith("1 MiB of weights at once in float16")
    assert found("cpu") == found("cuda:9") == []


@pytest.mark.parametrize("device", ["auto", "cuda:1", "cpu"])
@pytest.mark.parametrize("is_broken", [False, True])
def test_doctor_asks_the_driver_once(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, device: str, is_broken: bool
) -> None:
    """`doctor` asks the driver once, reports one that fails, and checks the rest."""
    monkeypatch.setattr(servers, "check_redis", lambda _: [])
    monkeypatch.setattr(servers, "check_s3", lambda _: [])
    driver.has(*TWO)
    if is_broken:
        driver.errors["nvmlDeviceGetCount"] = nvml.BROKEN
    findings = {each.what: each for each in run_checks(Settings(device=device))}
    assert driver.starts == 1
    assert findings["model default"].ok
    assert ("model default memory" in findings) is (device != "cpu" and not is_broken)
    if is_broken:
        assert not findings["device"].ok
        assert "repair the driver" in findings["device"].fix


@pytest.mark.parametrize(
    ("offload", "total_mib", "free_mib", "ok", "words"),
    [
        ("model", 2000, 2000, True, "1639 MiB of weights at once in float16, 2034 MiB in all"),
        ("model", 2000, 2000, True, "all parts do not fit together"),
        ("auto", 2100, 2100, True, "all parts fit together"),
        ("auto", 2100, 2000, True, "all parts do not fit together"),
        ("model", 1638, 1638, False, "SAG_OFFLOAD=sequential"),
        ("swap", 1638, 1638, False, "SAG_OFFLOAD=sequential"),
        ("model", 2000, 1638, True, "too little free memory"),
        ("none", 1900, 1900, False, "SAG_OFFLOAD=model"),
        ("none", 2100, 2100, True, "2034 MiB of weights at once in float16;"),
        ("sequential", 100, 100, True, "72 MiB of weights at once in float16, 2034 MiB in all"),
        ("sequential", 71, 71, False, "a GPU with more memory"),
    ],
)
def test_weights_must_fit_into_a_gpu(
    offload: str, total_mib: int, free_mib: int, ok: bool, words: str
) -> None:
    """A GPU must hold what its mode of offload needs at once; free memory is only mentioned.

    Whether all parts fit together is said as well: then offload needs not move them. The numbers
    are those of Stable Diffusion 1.5; its largest layer is the vocabulary.
    """
    files = ModelFiles(
        parameters={"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
        largest_layers={"unet": 29_492_480, "vae": 2_359_808, "text_encoder": 37_945_344},
    )
    gpu = Gpu(0, "", "T", total_mib, free_mib)
    found = check_memory("model x", files, "auto", offload, gpu)
    assert found.ok is ok
    assert words in found.found + found.fix
    assert ("too little free" in found.found) == (words == "too little free memory")


def test_the_size_of_weights_follows_their_precision() -> None:
    """Four bytes a parameter in float32; a safety checker is on the GPU beside what is moved."""
    files = ModelFiles(
        parameters={"unet": 10, "vae": 5, "safety_checker": 7},
        largest_layers={"unet": 3, "vae": 4, "safety_checker": 6},
    )
    assert files.weights_bytes("float32", "none") == 88
    assert files.weights_bytes("bfloat16", "model") == 34
    assert files.weights_bytes("float16", "sequential") == 22


@pytest.mark.slow  # it imports torch
def test_diffusers_offloads_all_but_the_safety_checker() -> None:
    """What doctor counts as staying on the GPU is what diffusers leaves there."""
    from diffusers import StableDiffusionPipeline

    assert StableDiffusionPipeline._exclude_from_cpu_offload == ["safety_checker"]
    assert StableDiffusionPipeline.model_cpu_offload_seq == "text_encoder->image_encoder->unet->vae"
