"""Which thread of the process computes with all of torch's threads: the engine's, and no other.

OpenMP gives each thread that runs a parallel operation a pool of its own. With more pooled threads
than cores GNU's library stops spinning at the barriers of all of them. Each small operation then
waits for a wake-up, even while the other pools are idle: a UNet call of one row took 2.5 times as
long on two cores.
"""

from __future__ import annotations

from functools import cache

import torch


def use_all() -> None:
    """Let the calling thread compute with as many threads as torch had before this module."""
    torch.get_num_threads()  # else the thread's first operation would set the default of that time
    torch.set_num_threads(_usual_threads())


def use_one() -> None:
    """Let the calling thread compute alone, and all threads that have not computed before."""
    _usual_threads()
    torch.set_num_threads(1)


@cache
def _usual_threads() -> int:
    return torch.get_num_threads()
