"""A part that raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting


def run(_setting: Setting, _found: Finding) -> None:
    """Raise."""
    message = "no such thing"
    raise ValueError(message)
