"""GPUs are numbered in the order of their PCI addresses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.settings.gpus import TWO
from worker import devices
from worker.app import create_app
from worker.cli import main
from worker.config.settings import Settings
from worker.doctor import servers
from worker.doctor.checks import run_checks
from worker.supervisor import supervisor

if TYPE_CHECKING:
    from tests.settings.nvml import Driver

pytestmark = pytest.mark.usefixtures("driver")
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
