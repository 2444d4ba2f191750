"""A part that can't run here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.gpu_check.outcome import Skipped

if TYPE_CHECKING:
    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting


def run(_setting: Setting, _found: Finding) -> None:
    """Say why."""
    message = "there is no moon"
    raise Skipped(message)
