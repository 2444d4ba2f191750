"""`program.py KIND FOLDER GRACE_S`: the real supervisor over stubs, which write down what they see.

Its fork server imports nothing, so that a test takes a second.
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

from worker.config.settings import Settings
from worker.recovery import release
from worker.supervisor import child_process, supervisor

KIND, FOLDER, GRACE_S = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])


def tell(name: str, owner: str) -> None:
    """Write down who and where this process is."""
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


def unwatched(pid: int, flags: int = 0) -> NoReturn:
    """A kernel that gives nothing to watch a process by."""
    (FOLDER / f"{pid}.unwatched").touch()
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def stay() -> NoReturn:
    """Live until a signal."""
    while True:
        time.sleep(60)


def settled(name: str, owner: str) -> None:
    """Work until SIGTERM, and then end in order."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    tell(name, owner)
    stay()


def stubborn(name: str, owner: str) -> None:
    """Never end by itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell(name, owner)
    stay()


def failing(name: str, owner: str) -> None:
    """Be a process whose device fails; its neighbour is well."""
    if name.endswith("2"):
        settled(name, owner)
    tell(name, owner)
    os._exit(70)


def slow(name: str, owner: str) -> None:
    """End in order, but long after SIGTERM: when the test says so."""

    def drain(*_: object) -> None:
        (FOLDER / f"{owner}.draining").touch()
        while not (FOLDER / "drained").exists():
            time.sleep(0.01)
        sys.exit(0)

    signal.signal(signal.SIGTERM, drain)
    tell(name, owner)
    stay()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    child_process.PRELOAD, os.environ["STUBS"] = "tests.supervisor.server", str(FOLDER)
    if (FOLDER / "blind").exists():
        os.pidfd_open = unwatched
    supervisor.GRACE_S = GRACE_S
    release.release_owner = lambda *_: 0  # there is no Redis
    posts = {
        f"gpu{n}": {"CUDA_VISIBLE_DEVICES": f"GPU-{n}", "SAG_DEVICE": "cuda:0"} for n in (1, 2)
    }
    sys.exit(supervisor.run(Settings(drain_timeout_s=0), posts, globals()[KIND]))
