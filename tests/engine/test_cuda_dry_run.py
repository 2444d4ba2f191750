"""The dry run of CUDA: what it sees, and that the engine's own rounds pass it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks.cuda_dry_run import __main__, dry_run, models
from benchmarks.cuda_dry_run.device import DEVICE
from benchmarks.cuda_dry_run.place import Place
from benchmarks.cuda_dry_run.tally import Fault
from tests.engine.dry_runs import found_in
from worker.engine.denoising import guidance
from worker.engine.denoising.unet import BatchedUnet
from worker.engine.device import device_memory
from worker.engine.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.cuda_dry_run.device import FakeCuda


@pytest.fixture(scope="module", autouse=True)
def first_use() -> None:
    """Import what torch and diffusers import at their first use, outside of the tests' times."""
    with dry_run.engine_on_fake_cuda() as fake:
        pipeline = models.load("bundled").pipeline
        with torch.inference_mode():
            pipeline.vae.decode(ones(1, 4, 8, 8))
    assert not fake.faults


@pytest.fixture
def device() -> Iterator[FakeCuda]:
    """A device for operators without an engine."""
    with dry_run.engine_on_fake_cuda() as fake:
        yield fake


def ones(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.ones(*shape, device=DEVICE, dtype=dtype)


def test_host_tensors_compute(device: FakeCuda) -> None:
    """A tensor on the host has its numbers, launches nothing, and is no fault."""
    with device.call("host") as tally:
        assert float(torch.tensor([1.0, 2.0]).sum() * torch.arange(4)[2]) == 6.0
    assert (tally.launched, tally.waits, device.faults) == (0, [], [])


@pytest.mark.parametrize("inference", [False, True])
def test_kernels(device: FakeCuda, inference: bool) -> None:
    """Views and allocations launch nothing; a linear layer and a scalar of the host launch one."""
    with torch.inference_mode(inference):
        rows, weight = ones(2, 8), ones(4, 8)
        with device.call("views") as views:
            torch.empty_like(rows).view(4, 4)[1:, 0].unsqueeze(0).expand(3, 3)
        with device.call("kernels") as kernels:
            torch.nn.functional.linear(rows, weight) * torch.tensor(0.5)
    assert (views.launched, kernels.launched, kernels.waits) == (0, 2, [])
    assert not device.faults


def test_memory(device: FakeCuda) -> None:
    """The peak counts what is alive at once; a view takes nothing."""
    with device.call("memory") as tally:
        kept = ones(1024)
        for _ in range(3):
            (kept * 2)[:512].reshape(2, 256)
    assert tally.growth_bytes == 2 * 1024 * 2
    assert device.memory.alive_bytes - tally.began_bytes == 1024 * 2
    del kept
    assert device.memory.alive_bytes == tally.began_bytes


def test_pinned_copy(device: FakeCuda) -> None:
    """Only a copy from pinned memory that is asked not to block does not wait."""
    numbers = torch.ones(4)
    with device.call("copies") as tally:
        numbers.pin_memory().to(DEVICE, non_blocking=True)
        assert not tally.waits
        numbers.pin_memory().to(DEVICE)
        numbers.to(DEVICE, non_blocking=True)
    assert (len(tally.waits), len(device.faults), tally.to_device_bytes) == (2, 2, 48)


READS: dict[str, Callable[[], object]] = {
    "item": lambda: ones(1).item(),
    "float": lambda: float(ones(3).max()),
    "int": lambda: int(ones(1, dtype=torch.int64)),
    "bool": lambda: bool(ones(3).isfinite().all()),
    "if": lambda: "yes" if ones(1) > 0 else "no",
    "cpu": lambda: ones(3).cpu().numpy(),
    "to": lambda: ones(3).to("cpu", torch.float32),
    "tolist": lambda: ones(3).cpu().tolist(),
    "equal": lambda: torch.equal(ones(3), ones(3)),
    "solve": lambda: torch.linalg.solve(ones(2, 2, dtype=torch.float32), ones(2).float()),
    "host index": lambda: ones(3)[torch.tensor([0, 2])],
    "host numbers": lambda: torch.tensor([1.0, 2.0], device=DEVICE),
    "synchronize": torch.cuda.synchronize,
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", READS)
def test_reads(device: FakeCuda, name: str, inference: bool) -> None:
    """Each way to read the device is one fault, which names call, operator and line."""
    read = torch.cuda.synchronize if name == "synchronize" else READS[name]
    with torch.inference_mode(inference), device.call("a round"):
        read()
    (fault,) = map(str, device.faults)
    assert fault.startswith("a round: the host waits for the device: ")
    assert "tests/engine/test_cuda_dry_run.py:" in fault


def test_unknown_size(device: FakeCuda) -> None:
    """A result whose size only the device knows is a fault, and ends the call."""
    for find in (lambda: ones(3).nonzero(), lambda: ones(3)[ones(3) > 0]):
        with pytest.raises(Exception, match="aten"):
            find()
    assert len(device.faults) == 2


def test_indexing(device: FakeCuda) -> None:
    """Indexing has the shapes of indexing on the host."""
    host, here = torch.ones(2, 3, 4, 5), ones(2, 3, 4, 5)
    for index in (0, -1, slice(1), (0, 1), (..., 2), (None, 1, ..., slice(1, 3)), (slice(None), 2)):
        assert here[index].shape == host[index].shape
    assert not device.faults


def test_mixed_devices(device: FakeCuda) -> None:
    """An operator on tensors of host and device is a fault."""
    with pytest.raises(RuntimeError, match="same device"):
        ones(3) + torch.ones(3)
    (fault,) = map(str, device.faults)
    assert "tensors on several devices: aten.add.Tensor at tests/engine" in fault


def test_float64(device: FakeCuda) -> None:
    """A float64 tensor on the device is a fault, whether it is made there or converted."""
    torch.zeros(3, dtype=torch.float64, device=DEVICE)
    ones(3).double()
    assert [str(each).split(": ")[1] for each in device.faults] == [
        "torch.float64 on the device"
    ] * 2


def test_both_passes() -> None:
    """A task with SAG is encoded and denoised without a fault."""
    # Two rows in each pass, as in warming up: fake tensors are faster at shapes that they know.
    same_rows = {"guidance_scale": 1.0, "num_images_per_prompt": 2}
    assert found_in(9, output_type="latent", **same_rows) == []


def test_a_picture() -> None:
    """A task without SAG is decoded and finished without a fault."""
    assert found_in(9, sag_scale=0.0) == []


def _host_timesteps(monkeypatch: pytest.MonkeyPatch) -> None:
    def to_device(_unet: BatchedUnet, numbers: Any) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.float32)

    monkeypatch.setattr(BatchedUnet, "to_device", to_device)


def _read_in_evaluate(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Runner.evaluate

    def reading(runner: Runner, images: Any) -> Any:
        assert float(images[0].latents.max()) < 100
        return evaluate(runner, images)

    monkeypatch.setattr(Runner, "evaluate", reading)


def _float64_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier_free = guidance.classifier_free

    def doubled(first: Any, second: Any, scale: Any) -> torch.Tensor:
        return classifier_free(first, second, scale.double()).float()

    monkeypatch.setattr(guidance, "classifier_free", doubled)


def _pageable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "to_device", lambda tensor, at: tensor.to(at))


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (_pageable, "encode, 2 texts: the host waits for the device: aten._to_copy.default to the"),
        (_host_timesteps, "UNet, 2 rows: tensors on several devices: aten."),
        (_read_in_evaluate, "round, 2 rows: the host waits for the device: aten._local_scalar"),
        (_float64_guidance, "round, 2 rows: torch.float64 on the device: aten."),
    ],
)
def test_a_broken_engine_fails(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[pytest.MonkeyPatch], None], what: str
) -> None:
    """Memory that is not pinned, timesteps on the host, a read and float64 are each a fault."""
    broken(monkeypatch)
    assert any(what in each for each in found_in(1))


def test_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints its faults and ends with status 1; without a fault with 0."""
    found = dry_run.Found("bundled")
    monkeypatch.setattr(dry_run, "run", lambda _: found)
    monkeypatch.setattr("sys.argv", ["cuda_dry_run"])
    __main__.main()
    where = Place("worker/engine/runner.py", 1, "Runner.evaluate")
    found.faults.append(Fault("round, 2 rows", "float64 on the device", "aten.mul.Tensor", where))
    with pytest.raises(SystemExit, match="1"):
        __main__.main()
    assert "round, 2 rows: float64 on the device: aten.mul.Tensor at worker/engine/runner.py:1" in (
        capsys.readouterr().err
    )
