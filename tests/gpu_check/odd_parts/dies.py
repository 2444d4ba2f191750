"""A part whose process ends in the middle, as by a driver's fault."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting


def run(_setting: Setting, found: Finding) -> None:
    """Say something, and end."""
    found.headline("half of it")
    os._exit(3)
