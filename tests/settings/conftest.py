"""A driver of NVIDIA's GPUs."""

from __future__ import annotations

import pytest

from tests.settings.nvml import Driver
from worker import devices


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """The machine's driver; none until the test gives it GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv(devices.ORDER, devices.PCI_ORDER)  # so that what is set is undone
    made = Driver()
    made.install(monkeypatch)
    return made
