"""Worker processes for each device: started, started again, told to end; it ends when they have."""

from __future__ import annotations

import logging
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from worker import devices
from worker.recovery import release
from worker.supervisor.child_process import ChildProcess
from worker.supervisor.orphaned_work import Orphans
from worker.supervisor.process_manager import ProcessManager

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from worker.config.settings import Settings

logger = logging.getLogger(__name__)

#: How often the children are looked at, in seconds.
LOOK_S = 0.1
#: How long after the drain a child may still write ends and upload before it is killed, in seconds.
GRACE_S = 90.0


def environments(device: str, gpus: Sequence[int], workers: int = 1) -> dict[str, dict[str, str]]:
    """What each child's environment adds, by the child's name; `workers` children a device.

    A GPU is pinned by its UUID, so that renumbering can't swap two children, and before CUDA is
    touched, so that it sees no other. `gpus` are indices as `nvidia-smi` numbers them.
    """
    chosen = _devices(device, gpus)
    if workers == 1:
        return chosen
    return {
        f"{name}-{number}": extra
        for name, extra in chosen.items()
        for number in range(1, workers + 1)
    }


def _devices(device: str, gpus: Sequence[int]) -> dict[str, dict[str, str]]:
    if not gpus and device != "auto":
        return {device.replace(":", ""): {"SAG_DEVICE": device}}
    present = {each.index: each for each in devices.list_gpus()}
    if missing := [number for number in gpus if number not in present]:
        message = f"no GPU {missing[0]}; nvidia-smi lists {sorted(present) or 'none'}"
        raise ValueError(message)
    if not present:
        return {"cpu": {"SAG_DEVICE": "cpu"}}
    return {
        f"gpu{number}": {"CUDA_VISIBLE_DEVICES": present[number].uuid, "SAG_DEVICE": "cuda:0"}
        for number in (gpus or sorted(present))
    }


def run(
    settings: Settings,
    children: Mapping[str, Mapping[str, str]],
    work: Callable[[str, str], object],
) -> int:
    """Keep a child for each entry until a signal; each calls `work(name, owner)`.

    Gives 0 when all ended after a signal, 2 when one's settings were refused.
    """
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: signals.append(number))
    with ThreadPoolExecutor(1, "give-back") as beside:
        orphans = Orphans(partial(release.release_owner, settings), beside.submit)
        grace_s = settings.drain_timeout_s + GRACE_S
        crew = ProcessManager(
            children,
            lambda name, extra: ChildProcess(name, extra, work, settings.log_format),
            orphans.add,
            grace_s,
        )
        try:
            while not crew.is_gone or orphans.are_left:
                now_s = time.monotonic()
                while signals:
                    logger.info("got %s, letting tasks end", signal.Signals(signals.pop(0)).name)
                    crew.leave(now_s)
                crew.step(now_s)
                orphans.step(now_s, patient=not crew.is_leaving)
                time.sleep(LOOK_S)
        finally:
            crew.leave(time.monotonic())  # whatever happened here, nobody serves unwatched
    return crew.status
