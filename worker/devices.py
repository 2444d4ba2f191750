"""Which GPUs the machine has, asked of the driver, without torch; what `auto` stands for."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Longest wait for the driver, in seconds.
ANSWER_S = 30


@dataclass(frozen=True)
class Gpu:
    """One GPU as `nvidia-smi` lists it."""

    index: int
    uuid: str
    name: str
    memory_mib: int | None
    #: Of it, what nobody uses just now.
    free_mib: int | None


def list_gpus() -> list[Gpu]:
    """The GPUs that this process may use; none where there is no driver.

    `CUDA_VISIBLE_DEVICES` is kept to. Raises `RuntimeError` when there is a driver that fails:
    to serve on the CPU instead would be a surprise.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    wanted = "index,uuid,name,memory.total,memory.free"
    query = [program, f"--query-gpu={wanted}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(  # noqa: S603  # a fixed command
            query, capture_output=True, text=True, timeout=ANSWER_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        message = f"nvidia-smi did not answer within {ANSWER_S} s; set SAG_DEVICE=cpu to go without"
        raise RuntimeError(message) from error
    said = (answer.stdout + answer.stderr).strip()[:500]
    if "No devices were found" in said:
        return []
    if answer.returncode:
        message = f"nvidia-smi failed: {said}; set SAG_DEVICE=cpu to go without"
        raise RuntimeError(message)
    rows = (line.split(", ") for line in answer.stdout.splitlines() if line.count(", ") == 4)  # noqa: PLR2004  # the columns asked for
    return _visible(
        [
            Gpu(int(index), uuid, name, _mib(memory), _mib(free))
            for index, uuid, name, memory, free in rows
        ]
    )


def _mib(told: str) -> int | None:
    """A number, or what a GPU says that shares the host's memory: `[N/A]`."""
    return int(told) if told.isdigit() else None


def _visible(gpus: list[Gpu]) -> list[Gpu]:
    """Those that `CUDA_VISIBLE_DEVICES` names, by index or by the beginning of their UUID."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return gpus
    names = [name.strip() for name in named.split(",") if name.strip()]
    return [
        gpu
        for name in names
        for gpu in gpus
        if name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name))
    ]


def resolve(device: str, gpus: Sequence[Gpu] | None = None) -> str:
    """The device that `auto` and `cuda` stand for; the driver is asked unless `gpus` are known."""
    if device == "auto":
        return "cuda:0" if (list_gpus() if gpus is None else gpus) else "cpu"
    return "cuda:0" if device == "cuda" else device
