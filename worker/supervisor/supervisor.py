"""Runs worker processes for each device until a signal, and returns when they have exited."""

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
from worker.supervisor.orphaned_work import OrphanedWork
from worker.supervisor.process_manager import ProcessManager

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from worker.config.settings import Settings

logger = logging.getLogger(__name__)

#: Pause between two checks of the processes, in seconds.
POLL_INTERVAL_S = 0.1
#: A process that has not exited so long after `SAG_EXIT_TIMEOUT_S` is killed, in seconds.
KILL_DELAY_S = 5.0


def worker_environments(
    device: str, gpu_indices: Sequence[int], workers: int = 1
) -> dict[str, dict[str, str]]:
    """Return what each process adds to the environment, by the process's name.

    There are `workers` processes for each device: each GPU of `gpu_indices` (in PCI order, as
    `nvidia-smi` numbers them), or what `device` stands for; a GPU in MIG mode is one device for
    each instance. A process sees its own device only: `CUDA_VISIBLE_DEVICES` is set to its UUID,
    which renumbering does not change, before CUDA is initialised. Raises `ValueError` for a GPU
    that is not there, `RuntimeError` when the driver fails.
    """
    chosen = _device_environments(device, gpu_indices)
    if workers == 1:
        return chosen
    return {
        f"{name}-{number}": extra
        for name, extra in chosen.items()
        for number in range(1, workers + 1)
    }


def _device_environments(device: str, indices: Sequence[int]) -> dict[str, dict[str, str]]:
    if not indices and device != "auto":
        return {device.replace(":", ""): {"SAG_DEVICE": device}}
    gpus = devices.list_gpus()
    present = {gpu.index for gpu in gpus}
    if missing := [index for index in indices if index not in present]:
        raise ValueError(f"no GPU {missing[0]}; the driver lists {sorted(present) or 'none'}")
    if not gpus:
        return {"cpu": {"SAG_DEVICE": "cpu"}}
    return {
        gpu.label: {"CUDA_VISIBLE_DEVICES": gpu.uuid, "SAG_DEVICE": "cuda:0"}
        for gpu in gpus
        if not indices or gpu.index in indices
    }


def run(
    settings: Settings,
    environments: Mapping[str, Mapping[str, str]],
    work: Callable[[str, str], object],
    preload: str,
) -> int:
    """Keep a process running for each of `environments` until SIGTERM or SIGINT.

    Each calls `work(name, owner)`, forked from a server that has imported module `preload`. Returns
    0 when all have exited after a signal, 2 when one refused its settings.
    """
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: signals.append(number))
    with ThreadPoolExecutor(1, "release") as executor:
        orphans = OrphanedWork(partial(release.release_owner, settings), executor.submit)
        manager = ProcessManager(
            environments,
            lambda name, extra: ChildProcess(name, extra, work, preload, settings.log_format),
            orphans.add,
            settings.drain_timeout_s + settings.exit_timeout_s + KILL_DELAY_S,
        )
        try:
            while not manager.has_stopped or orphans.is_left:
                now_s = time.monotonic()
                while signals:
                    name = signal.Signals(signals.pop(0)).name
                    logger.info("received %s; stopping the workers", name)
                    manager.stop(now_s)
                manager.step(now_s)
                orphans.step(now_s, retry=not manager.is_stopping)
                time.sleep(POLL_INTERVAL_S)
        finally:
            manager.stop(time.monotonic())  # after an error here no worker runs unsupervised
    return manager.status
