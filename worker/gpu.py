"""Which GPUs the machine has, asked of the driver, without torch; what `auto` stands for."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU as `nvidia-smi` lists it."""

    index: int
    uuid: str
    name: str
    memory_mib: int | None


def list_gpus() -> list[Gpu]:
    """The GPUs that this process may use; none where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603  # a fixed command
    if answer.returncode:
        return []
    rows = (line.split(", ") for line in answer.stdout.splitlines() if line.count(", ") == 3)  # noqa: PLR2004  # the columns asked for
    return [
        Gpu(int(index), uuid, name, int(memory) if memory.isdigit() else None)
        for index, uuid, name, memory in rows
    ]


def resolve(device: str) -> str:
    """The device that `auto` and `cuda` stand for."""
    if device == "auto":
        return "cuda:0" if list_gpus() else "cpu"
    return "cuda:0" if device == "cuda" else device
