"""`program.py KIND FOLDER GRACE_S`: the real supervisor with stub workers that write records.

Workers and fork server import no more than they need, so that a test takes about a second.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

KIND, FOLDER, GRACE_S = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])


def record(name: str, owner: str) -> None:
    """Write the identity and environment of this process to a file."""
    seen = {
        "name": name,
        "owner": owner,
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "device": os.environ.get("SAG_DEVICE"),
        "arguments": sys.argv,
    }
    draft = FOLDER / f"{owner}.draft"
    draft.write_text(json.dumps(seen))
    draft.rename(FOLDER / f"{owner}.json")


def refuse_pidfd(pid: int, flags: int = 0) -> NoReturn:
    """Act as a kernel without pidfd."""
    (FOLDER / f"{pid}.unwatched").touch()
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def sleep_forever() -> NoReturn:
    """Live until a signal."""
    while True:
        time.sleep(60)


def orderly(name: str, owner: str) -> None:
    """Work until SIGTERM, then exit with 0."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    record(name, owner)
    sleep_forever()


def stubborn(name: str, owner: str) -> None:
    """Ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    record(name, owner)
    sleep_forever()


def failing(name: str, owner: str) -> None:
    """Exit as with a failing device; the second worker is orderly."""
    if name.endswith("2"):
        orderly(name, owner)
    record(name, owner)
    os._exit(70)


def slow(name: str, owner: str) -> None:
    """Exit with 0 after SIGTERM, but only when the test says so."""

    def drain(*_: object) -> None:
        (FOLDER / f"{owner}.draining").touch()
        while not (FOLDER / "drained").exists():
            time.sleep(0.01)
        sys.exit(0)

    signal.signal(signal.SIGTERM, drain)
    record(name, owner)
    sleep_forever()


if __name__ == "__main__":
    from worker.config.settings import Settings
    from worker.recovery import release
    from worker.supervisor import process_manager, supervisor

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    os.environ["STUBS"] = str(FOLDER)
    if (FOLDER / "no-pidfd").exists():
        os.pidfd_open = refuse_pidfd
    process_manager._MIN_PAUSE_S[70] = 0.2
    release.release_owner = lambda *_: 0  # there is no Redis
    environments = {
        f"gpu{n}": {"CUDA_VISIBLE_DEVICES": f"GPU-{n}", "SAG_DEVICE": "cuda:0"} for n in (1, 2)
    }
    settings = Settings(drain_timeout_s=0, exit_timeout_s=1)
    supervisor.KILL_DELAY_S = GRACE_S - settings.exit_timeout_s
    sys.exit(supervisor.run(settings, environments, globals()[KIND], "tests.supervisor.server"))
