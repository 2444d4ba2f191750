"""GPUs in MIG mode: each instance is a device of its own."""

from __future__ import annotations

import pynvml
import pytest

from tests.settings.gpus import FIRST, TWO
from tests.settings.nvml import H100, Device, Driver
from worker import devices
from worker.devices import Gpu
from worker.supervisor.supervisor import worker_environments

#: GPU 1 is in MIG mode: three instances, numbered with a gap, two of them on one GPU instance.
INSTANCES: list[Device | None] = [
    Device("MIG-1111", f"{H100} MIG 3g.40gb", 40448, 40000, ids=(1, 0)),
    None,
    Device("MIG-2222", f"{H100} MIG 1c.3g.40gb", 40448, 40000, ids=(2, 0)),
    Device("MIG-1122", f"{H100} MIG 1c.3g.40gb", 40448, 40000, ids=(2, 1)),
]
MIXED = (Device("GPU-aaaa"), Device("GPU-bbbb", instances=INSTANCES), Device("GPU-bbcc"))


@pytest.mark.parametrize(
    "gpu",
    [
        Device("GPU-aaaa"),
        Device("GPU-aaaa", instances=[]),
        Device("GPU-aaaa", mig_error=pynvml.NVML_ERROR_FUNCTION_NOT_FOUND),
    ],
    ids=["no MIG mode", "MIG mode off", "old driver"],
)
def test_a_gpu_without_mig_mode_is_one_device(driver: Driver, gpu: Device) -> None:
    """A GPU without MIG mode, with MIG mode off or with an old driver is one device."""
    driver.has(gpu)
    assert worker_environments("auto", []) == {"gpu0": FIRST}


def test_each_mig_instance_gets_a_worker(driver: Driver) -> None:
    """A GPU in MIG mode can be used through its instances only; each has its own UUID."""
    driver.has(*MIXED)
    names = ["gpu0", "gpu1-mig0", "gpu1-mig2", "gpu1-mig3", "gpu2"]
    started = worker_environments("auto", [])
    assert list(started) == names
    pins = [each["CUDA_VISIBLE_DEVICES"] for each in started.values()]
    assert pins == ["GPU-aaaa", "MIG-1111", "MIG-2222", "MIG-1122", "GPU-bbcc"]
    assert list(worker_environments("auto", [1])) == names[1:4]
    assert devices.list_gpus()[1] == Gpu(
        1, "GPU-bbbb", f"{H100} MIG 3g.40gb", 40448, 40000, 0, "MIG-1111", "1/0"
    )


def test_a_gpu_in_mig_mode_needs_an_instance(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU in MIG mode without an instance is not used; without any GPU the start stops."""
    driver.has(*TWO, Device("GPU-cccc", instances=[None, None]))
    assert list(worker_environments("auto", [])) == ["gpu0", "gpu1"]
    assert "GPU 2 (GPU-cccc) is in MIG mode and has no instance" in caplog.text
    driver.has(Device("GPU-cccc", instances=[None]))
    with pytest.raises(RuntimeError, match=r"MIG mode.*SAG_DEVICE=cpu"):
        worker_environments("auto", [])


@pytest.mark.parametrize(
    ("value", "workers"),
    [
        ("MIG-1111", ["gpu1-mig0"]),
        ("MIG-2222,MIG-1111", ["gpu1-mig2", "gpu1-mig0"]),
        ("MIG-GPU-bbbb/2/1", ["gpu1-mig3"]),
        ("MIG-GPU-bbb/1/0", ["gpu1-mig0"]),
        ("MIG-1111,MIG-nope,MIG-2222", ["gpu1-mig0"]),
        ("MIG-1111,1", ["gpu1-mig0"]),
        # A GPU in MIG mode stands for its instances.
        ("1", ["gpu1-mig0", "gpu1-mig2", "gpu1-mig3"]),
        ("GPU-bbbb,GPU-aaaa", ["gpu1-mig0", "gpu1-mig2", "gpu1-mig3", "gpu0"]),
        ("GPU-bb", ["cpu"]),
        ("1,1", ["cpu"]),
        ("GPU-bbbb,GPU-bbb", ["cpu"]),
        ("GPU-bbbb,GPU-bb", ["gpu1-mig0", "gpu1-mig2", "gpu1-mig3"]),
    ],
)
def test_mig_instances_are_found_by_name(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, value: str, workers: list[str]
) -> None:
    """MIG instances are found by UUID, or by GPU, GPU instance and compute instance."""
    driver.has(*MIXED)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert list(worker_environments("auto", [])) == workers


@pytest.mark.parametrize(
    "value",
    [
        "MIG-nope", "MIG-", "MIG-11", "MIG-GPU-bbbb", "MIG-GPU-bbbb/9/0", "MIG-GPU-aaaa/1/0",
        "MIG-GPU-/1/0/0", "MIG-aaaa", "MIG-1111,MIG-1111", " MIG-1111, ",
    ],
)  # fmt: skip
def test_an_unknown_mig_instance_stops_the_start(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """An unknown MIG instance stops the start, as CUDA would see no device."""
    driver.has(*MIXED)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with pytest.raises(RuntimeError, match="MIG-1111, MIG-2222, MIG-1122"):
        worker_environments("auto", [])
