"""The check as a whole, in its small form on the CPU."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.gpu_check import page
from benchmarks.gpu_check.outcome import Status
from benchmarks.gpu_check.parts import BY_NAME

if TYPE_CHECKING:
    from pathlib import Path

#: All but those that start servers, which tests/service starts all the time.
CHOSEN = (
    "environment", "weights", "parity", "families", "throughput", "sdxl", "arithmetic",
    "adapters", "full_memory", "offload", "resume", "rows", "energy", "compiled",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_the_rehearsal(tmp_path: Path) -> None:
    """Every part ends well or says that it needs a GPU, and the page has all of them."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--rehearse", "--seconds", "900"]
    ran = subprocess.run(
        [*command, "--slack", "5", "--out", str(tmp_path), "--only", *CHOSEN],
        check=False,
        timeout=950,
    )
    report = page.load(tmp_path / f"{page.NAME}.json")
    ends = {each.name: (each.status, each.reason) for each in report.outcomes}
    skipped = (Status.SKIPPED, "only on a GPU")
    gpu_only = {"energy", "compiled"}
    expected = {name: skipped if name in gpu_only else (Status.PASSED, "") for name in CHOSEN}
    assert ends == expected
    assert ran.returncode == 0
    text = (tmp_path / f"{page.NAME}.md").read_text()
    for name in CHOSEN:
        assert f"\n## {BY_NAME[name].title}\n" in text
    assert text.count("\n- yes: ") >= 10
    assert "**NO**" not in text


@pytest.mark.slow
def test_a_run_without_a_device_says_so(tmp_path: Path) -> None:
    """On a machine without a GPU the check ends at once, with exit status 1."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path)]
    ran = subprocess.run(command, check=False, timeout=120)
    assert ran.returncode == 1
    first, *rest = page.load(tmp_path / f"{page.NAME}.json").outcomes
    assert first.reason.startswith("RuntimeError: torch finds no CUDA device here")
    assert {each.status for each in rest} == {Status.SKIPPED}
