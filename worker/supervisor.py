"""One worker process for each device; signals go to all of them, and it ends when they have."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from worker import gpu

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)

#: How often the children are looked at, in seconds.
LOOK_S = 0.1
#: `prctl`'s request for a signal at the parent's death, from `linux/prctl.h`.
_PR_SET_PDEATHSIG = 1


def environments(device: str, gpus: Sequence[int]) -> dict[str, dict[str, str]]:
    """What each child's environment adds, by the child's name.

    A GPU is pinned by its UUID, so that renumbering can't swap two children, and before torch is
    imported, so that it sees no other. `gpus` are indices as `nvidia-smi` numbers them.
    """
    if not gpus and device != "auto":
        return {device.replace(":", ""): {"SAG_DEVICE": device}}
    present = {each.index: each for each in gpu.list_gpus()}
    if missing := [number for number in gpus if number not in present]:
        message = f"no GPU {missing[0]}; nvidia-smi lists {sorted(present) or 'none'}"
        raise ValueError(message)
    if not present:
        return {"cpu": {"SAG_DEVICE": "cpu"}}
    return {
        f"gpu{number}": {"CUDA_VISIBLE_DEVICES": present[number].uuid, "SAG_DEVICE": "cuda:0"}
        for number in (gpus or sorted(present))
    }


def run(children: Mapping[str, Mapping[str, str]]) -> int:
    """Start a child for each entry and wait. A child that ends by itself ends the others.

    Gives 0 when all ended after a signal, otherwise the status of the first that fell.
    """
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: signals.append(number))
    waiting = {name: _start(name, extra) for name, extra in children.items()}
    status, leaving = 0, False
    while waiting:
        while signals:
            logger.info("got %s, letting tasks end", signal.Signals(signals.pop(0)).name)
            leaving = True
            _terminate(waiting)
        for name in [name for name, child in waiting.items() if child.poll() is not None]:
            code = waiting.pop(name).returncode
            if not leaving:
                logger.error("worker %s ended with status %d; ending the others", name, code)
                status, leaving = code or 1, True
                _terminate(waiting)
        time.sleep(LOOK_S)
    return status


def _terminate(children: Mapping[str, subprocess.Popen[bytes]]) -> None:
    for child in children.values():
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)


def end_with_parent(parent: int) -> None:
    """Have this child told to end when process `parent` dies, however that dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:
        sys.exit(f"the parent process {parent} is gone already")


def _start(name: str, extra: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "worker", "work", "--name", name]
    command += ["--parent", str(os.getpid())]
    # A session of its own: Ctrl-C reaches the children through us alone, once.
    return subprocess.Popen(command, env={**os.environ, **extra}, start_new_session=True)  # noqa: S603  # ourselves
