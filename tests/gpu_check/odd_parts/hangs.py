"""A part that finds something, then hangs with a child process that hangs, too."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting


def run(_setting: Setting, found: Finding) -> None:
    """Tell the child's id, and wait."""
    print("waiting for nothing")
    sys.stdout.flush()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    found.row(child=child.pid)
    time.sleep(600)
