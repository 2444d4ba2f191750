"""A part with something that does not hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting


def run(_setting: Setting, found: Finding) -> None:
    """One check holds, the other does not."""
    found.check("water is wet", holds=True)
    found.check("fire is cold", holds=False)
