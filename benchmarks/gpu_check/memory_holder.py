"""A process that holds memory of the GPU, so that only so much is left for others."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

#: Allocated at a time.
CHUNK_BYTES = 256 * 2**20
#: Longest wait for the process's answer, in seconds.
ANSWER_S = 30.0


class MemoryHolder:
    """Tells the process what to leave."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def leave(self, free_bytes: int | None) -> int:
        """Hold all but so much of what is free now; None gives everything back.

        Returns the bytes that are free then.
        """
        self._pipe.send(free_bytes)
        if not self._pipe.poll(ANSWER_S):
            message = "the process that holds memory did not answer"
            raise RuntimeError(message)
        return int(self._pipe.recv())


@contextmanager
def started(device: str) -> Iterator[MemoryHolder]:
    """The process, forked from this one, which must not have used CUDA yet; ended on leaving."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_hold, args=(device, theirs), daemon=True
    )
    process.start()
    try:
        yield MemoryHolder(ours)
    finally:
        process.kill()
        process.join()


def _hold(device: str, pipe: Connection) -> None:
    import torch  # noqa: PLC0415  # imported already where this process was forked from

    held: list[torch.Tensor] = []
    while True:
        try:
            wanted_bytes = pipe.recv()
        except EOFError:
            return
        held.clear()
        torch.cuda.empty_cache()
        if wanted_bytes is not None:
            while torch.cuda.mem_get_info(device)[0] > wanted_bytes + CHUNK_BYTES:
                held.append(torch.empty(CHUNK_BYTES, dtype=torch.uint8, device=device))
        time.sleep(0.1)  # the driver tells others a moment later
        pipe.send(torch.cuda.mem_get_info(device)[0])
