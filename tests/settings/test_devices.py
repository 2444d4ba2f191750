"""Which GPUs this machine has, and which worker process gets which."""

from __future__ import annotations

import threading

import pynvml
import pytest

from tests.settings import nvml
from tests.settings.gpus import CPU, FIRST, SECOND, TWO
from tests.settings.nvml import H100, Driver
from worker import devices
from worker.devices import Gpu
from worker.supervisor.supervisor import worker_environments

pytestmark = pytest.mark.usefixtures("driver")


def test_each_gpu_gets_a_worker(driver: Driver) -> None:
    """`auto` starts a worker for each GPU, pinned by UUID, which renumbering does not change."""
    driver.has(*TWO)
    assert worker_environments("auto", []) == {"gpu0": FIRST, "gpu1": SECOND}
    assert devices.resolve("auto") == "cuda:0"
    assert devices.list_gpus()[1] == Gpu(1, "GPU-bbbb", H100, 81559, 12)


def test_a_device_may_have_several_workers(driver: Driver) -> None:
    """`--workers 2` starts two workers with their own names on each device."""
    driver.has(*TWO)
    assert worker_environments("auto", [1], workers=2) == {"gpu1-1": SECOND, "gpu1-2": SECOND}
    names = ["gpu0-1", "gpu0-2", "gpu1-1", "gpu1-2"]
    assert sorted(worker_environments("auto", [], workers=2)) == names
    cpu = CPU["cpu"]
    assert worker_environments("cpu", [], workers=3) == {"cpu-1": cpu, "cpu-2": cpu, "cpu-3": cpu}
    assert worker_environments("cpu", [], workers=1) == CPU


def test_chosen_gpus_are_used(driver: Driver) -> None:
    """`--gpu 1` starts a worker on that GPU alone, whatever `SAG_DEVICE` says."""
    driver.has(*TWO)
    assert worker_environments("auto", [1]) == {"gpu1": SECOND}
    assert worker_environments("cuda:0", [1, 0]) == {"gpu1": SECOND, "gpu0": FIRST}


@pytest.mark.parametrize("gpus", [[2], [0, 5], [-1]])
def test_a_missing_gpu_is_an_error(driver: Driver, gpus: list[int]) -> None:
    """A wrong index stops the start and names the GPUs that exist."""
    driver.has(*TWO)
    with pytest.raises(ValueError, match=rf"no GPU {gpus[-1]}.*\[0, 1\]"):
        worker_environments("auto", gpus)


@pytest.mark.parametrize("gpus", [[], [0]])
def test_without_a_driver_the_cpu_is_used(gpus: list[int]) -> None:
    """Without NVIDIA's library `auto` is one worker on the CPU; asking for a GPU is an error."""
    assert devices.list_gpus() == []
    assert devices.resolve("auto") == "cpu"
    if gpus:
        with pytest.raises(ValueError, match="none"):
            worker_environments("auto", gpus)
    else:
        assert worker_environments("auto", gpus) == CPU


def test_a_machine_without_the_library_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real `pynvml` reports a missing library as the error that means no GPUs."""
    monkeypatch.undo()
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert devices.list_gpus() == []


@pytest.mark.parametrize(
    "function",
    [
        "nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID",
        "nvmlDeviceGetName", "nvmlDeviceGetMigMode", "nvmlDeviceGetMemoryInfo",
    ],
)  # fmt: skip
def test_a_failing_driver_stops_the_start(driver: Driver, function: str) -> None:
    """A failing driver stops the start: a GPU host must not serve on its CPU unnoticed."""
    driver.has(*TWO)
    driver.errors[function] = nvml.BROKEN
    with pytest.raises(RuntimeError, match=r"driver fails: .*SAG_DEVICE=cpu"):
        worker_environments("auto", [])
    assert worker_environments("cpu", []) == CPU


def test_a_hanging_driver_stops_the_start(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that does not answer is an error after a time limit."""
    answer = threading.Event()
    driver.has(*TWO)
    driver.on_start = answer.wait
    monkeypatch.setattr(devices, "DRIVER_TIMEOUT_S", 0.05)
    with pytest.raises(RuntimeError, match=r"no answer within 0\.05 s.*SAG_DEVICE=cpu"):
        worker_environments("auto", [])
    answer.set()


def test_a_driver_without_gpus_means_the_cpu(driver: Driver) -> None:
    """A driver without GPUs, which may have been removed, means the CPU."""
    driver.has()
    assert worker_environments("auto", []) == CPU


@pytest.mark.parametrize(
    ("device", "name"), [("cpu", "cpu"), ("cuda:1", "cuda1"), ("cuda", "cuda")]
)
def test_a_device_by_name_is_one_worker(driver: Driver, device: str, name: str) -> None:
    """A device that was named is used as it is, and the driver is not asked."""
    assert worker_environments(device, []) == {name: {"SAG_DEVICE": device}}
    assert driver.starts == 0


@pytest.mark.parametrize(
    ("device", "expected"), [("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_a_name_resolves(device: str, expected: str) -> None:
    """`cuda` is the first GPU; a full name is itself."""
    assert devices.resolve(device) == expected
