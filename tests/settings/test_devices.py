"""Which devices this process may use, and which worker process gets which."""

from __future__ import annotations

import itertools
import os
import threading

import pynvml
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.settings import nvml
from tests.settings.nvml import H100, Device, Driver
from worker import devices
from worker.app import create_app
from worker.cli import main
from worker.config.settings import Settings
from worker.devices import Gpu
from worker.doctor import servers
from worker.doctor.checks import check_memory, check_models, run_checks
from worker.engine.loading.model_files import ModelFiles
from worker.supervisor import supervisor
from worker.supervisor.supervisor import worker_environments

TWO = (Device("GPU-aaaa"), Device("GPU-bbbb", free_mib=12))
FIRST = {"CUDA_VISIBLE_DEVICES": "GPU-aaaa", "SAG_DEVICE": "cuda:0"}
SECOND = {"CUDA_VISIBLE_DEVICES": "GPU-bbbb", "SAG_DEVICE": "cuda:0"}
CPU = {"cpu": {"SAG_DEVICE": "cpu"}}
#: GPU 1 is in MIG mode: three instances, numbered with a gap, two of them on one GPU instance.
INSTANCES: list[Device | None] = [
    Device("MIG-1111", f"{H100} MIG 3g.40gb", 40448, 40000, ids=(1, 0)),
    None,
    Device("MIG-2222", f"{H100} MIG 1c.3g.40gb", 40448, 40000, ids=(2, 0)),
    Device("MIG-1122", f"{H100} MIG 1c.3g.40gb", 40448, 40000, ids=(2, 1)),
]
MIXED = (Device("GPU-aaaa"), Device("GPU-bbbb", instances=INSTANCES), Device("GPU-bbcc"))


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """The machine's driver; none until the test gives it GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv(devices.ORDER, devices.PCI_ORDER)  # so that what is set is undone
    made = Driver()
    made.install(monkeypatch)
    return made


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
        # Indices. The first that is invalid ends the list, as NVIDIA documents.
        ("1", ["gpu1"]),
        ("1,0", ["gpu1", "gpu0"]),
        ("0,-1,1", ["gpu0"]),
        ("-1,0", ["cpu"]),
        ("7", ["cpu"]),
        ("0,7,1", ["gpu0"]),
        ("", ["cpu"]),
        (" ", ["cpu"]),
        ("none", ["cpu"]),
        ("NoDevFiles", ["cpu"]),
        ("0,,1", ["gpu0"]),
        (",0", ["cpu"]),
        # As read by C's strtol.
        (" 1 , 0 ", ["gpu1", "gpu0"]),
        ("+1", ["gpu1"]),
        ("1gpu,0x1", ["gpu1", "gpu0"]),
        ("1.5", ["gpu1"]),
        ("01", ["gpu1"]),
        # A device that is named twice hides all.
        ("0,0", ["cpu"]),
        ("1,0,1", ["cpu"]),
        ("0,-1,0", ["gpu0"]),
        ("0,00", ["cpu"]),
        # UUIDs, whole or cut short; the first that is unknown or ambiguous ends the list.
        ("GPU-aaaa", ["gpu0"]),
        ("GPU-bbbb,GPU-a", ["gpu1", "gpu0"]),
        ("GPU-bb", ["gpu1"]),
        ("GPU-", ["cpu"]),
        ("GPU-aaaa,GPU-x,GPU-bbbb", ["gpu0"]),
        ("gpu-aaaa", ["cpu"]),
        ("aaaa", ["cpu"]),
        ("GPU-aaaa,GPU-aaaa", ["cpu"]),
        ("GPU-aaaa,GPU-aa", ["cpu"]),
        # The first name says what the list holds.
        ("GPU-aaaa,1", ["gpu0"]),
        ("1,GPU-aaaa", ["gpu1"]),
        ("GPU-aaaa,MIG-aaaa", ["gpu0"]),
    ],
)
def test_cuda_visible_devices_is_obeyed(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, value: str, workers: list[str]
) -> None:
    """The start uses the GPUs that CUDA would see, in that order."""
    driver.has(*TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert list(worker_environments("auto", [])) == workers
    assert devices.resolve("auto") == ("cpu" if workers == ["cpu"] else "cuda:0")


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


@pytest.mark.parametrize("value", ["GPU-aaaaa", "GPU-AAAA", "GPU-x,GPU-aaaa", " GPU-nope"])
def test_an_unknown_uuid_stops_the_start(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """An unknown UUID of a GPU stops the start, as CUDA would see no device."""
    driver.has(*TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with pytest.raises(RuntimeError, match="names no GPU; the driver lists GPU-aaaa, GPU-bbbb"):
        worker_environments("auto", [])


NAMES = st.sampled_from(
    ["0", "1", " 0", "1 ", "-1", "+1", "1x", "x", "", "GPU-aaaa", "GPU-bbbb", "GPU-a", "GPU-bb",
     "GPU-b", "GPU-"]
)  # fmt: skip


@pytest.mark.slow  # it imports torch; the tables above are its fast form
@hypothesis_settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(NAMES, min_size=1, max_size=4))
def test_cuda_visible_devices_is_read_as_torch_reads_it(names: list[str]) -> None:
    """The result is that of torch, which has its own reading instead of a call to CUDA.

    But for a name that is repeated behind one that is invalid: there torch sees no device.
    """
    from torch.cuda import _parse_visible_devices, _transform_uuid_to_ordinals

    value, uuids = ",".join(names), ["GPU-aaaa", "GPU-bbbb", "GPU-bbcc"]
    gpus = [Gpu(index, uuid, H100) for index, uuid in enumerate(uuids)]
    valid = list(itertools.takewhile(lambda name: devices.visible(gpus, name), names))
    assume(len(valid) == len(names) or len(set(names)) == len(names))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", value)
        expected = list(_parse_visible_devices())
    if expected and isinstance(expected[0], str):
        expected = list(_transform_uuid_to_ordinals([str(each) for each in expected], uuids))
    assert [gpu.index for gpu in devices.visible(gpus, value)] == expected


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


PINNED = {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}


@pytest.mark.parametrize(
    ("device", "environment", "is_refused"),
    [
        ("auto", {}, False),
        ("cuda:1", {}, True),
        ("cuda", {}, True),
        ("cpu", {"CUDA_VISIBLE_DEVICES": "1,0"}, False),
        ("auto", {"CUDA_VISIBLE_DEVICES": "1,0"}, True),
        ("auto", {"CUDA_VISIBLE_DEVICES": ""}, False),
        ("auto", PINNED, False),
        ("cuda:0", PINNED, False),
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": "MIG-1111"}, False),
    ],
)
def test_indices_are_those_of_nvidia_smi(
    monkeypatch: pytest.MonkeyPatch, device: str, environment: dict[str, str], is_refused: bool
) -> None:
    """CUDA numbers GPUs in PCI order; another order is refused where an index names a GPU."""
    monkeypatch.delenv(devices.ORDER, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    devices.use_pci_order(device)
    assert os.environ[devices.ORDER] == "PCI_BUS_ID"
    devices.use_pci_order(device)
    monkeypatch.setenv(devices.ORDER, "FASTEST_FIRST")
    if is_refused:
        with pytest.raises(ValueError, match=r"FASTEST_FIRST is not supported.*UUID"):
            devices.use_pci_order(device)
    else:
        devices.use_pci_order(device)
    assert os.environ[devices.ORDER] == "FASTEST_FIRST"


def test_every_way_in_sets_the_order(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run`, a worker process alone and `doctor` set the order of GPUs, and refuse another."""
    driver.has(*TWO)
    monkeypatch.setattr(servers, "check_redis", lambda _: [])
    monkeypatch.setattr(servers, "check_s3", lambda _: [])
    monkeypatch.setattr(supervisor, "run", lambda *_: 0)

    def run() -> None:
        with pytest.raises(SystemExit):
            main.run()

    def doctor() -> None:
        assert list(run_checks(Settings()))

    for way in (run, lambda: create_app(Settings(device="cuda:1")), doctor):
        monkeypatch.delenv(devices.ORDER, raising=False)
        way()
        assert os.environ[devices.ORDER] == "PCI_BUS_ID"
    monkeypatch.setenv(devices.ORDER, "FASTEST_FIRST")
    found = {each.what: each for each in run_checks(Settings(device="cuda:1"))}
    assert not found["device"].ok
    assert "FASTEST_FIRST" in found["device"].found
    with pytest.raises(SystemExit):
        main.run(device="cuda:1")
    with pytest.raises(ValueError, match="FASTEST_FIRST"):
        create_app(Settings(device="cuda:1"))


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
