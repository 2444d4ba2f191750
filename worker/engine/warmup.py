"""How many rows one UNet call should take: measured on the device, not guessed."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from worker.engine import prepare

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Numbers of rows that are tried.
TRIED = (1, 2, 4, 8, 16, 32, 64)
#: No call should take longer, in seconds: so long a new task or a cancel would wait.
LONGEST_S = 0.5
#: Calls of one size that are timed, as far as all together take less than so many seconds.
CALLS, BRIEF_S = 4, 0.15
#: More rows that make each of them cheaper by less than this share are not worth the wait.
GAIN = 0.05
#: Share of the device's memory that is left to the decoder and to others.
SPARE = 0.2


@dataclass(frozen=True)
class Capacity:
    """Rows of one call, at the size of latents that they were measured at."""

    rows: float
    cells: int
    #: However small the latents are.
    most: int = TRIED[-1]

    def limit(self, height: int, width: int) -> int:
        """Rows for latents of this size: the work and the memory of a row go with its cells."""
        return min(self.most, max(1, int(self.rows * self.cells / (height * width))))

    def less_than(self, rows: int, height: int, width: int) -> Capacity:
        """A capacity of half of so many rows, which did not fit."""
        return replace(self, rows=min(self.rows, rows * height * width / self.cells / 2))


def capacity(pipe: Any, network: Callable[..., Any], max_rows: int | None) -> Capacity:  # noqa: ANN401  # a diffusers pipeline
    """What the device takes; `max_rows` is believed, and only one call of two rows is made.

    `network` is the UNet as the runner calls it: latents, timesteps, embeddings.
    """
    height, width = prepare.own_size(pipe)
    call = _caller(pipe, network, (height, width))
    if max_rows is not None:
        call(2)
        return Capacity(max_rows, height * width, max_rows)
    if pipe._execution_device.type == "cuda":  # noqa: SLF001  # diffusers' own way to ask
        torch.cuda.reset_peak_memory_stats(pipe._execution_device)  # noqa: SLF001  # as above
    rows, seconds = _measure(call, pipe._execution_device)  # noqa: SLF001  # diffusers' own way to ask
    shown = ", ".join(f"{n}: {1000 * each:.0f} ms" for n, each in seconds.items())
    logger.info("up to %d rows in one UNet call; measured %s", rows, shown)
    return Capacity(rows, height * width)


def _caller(pipe: Any, network: Callable[..., Any], size: tuple[int, int]) -> Callable[[int], None]:  # noqa: ANN401  # a diffusers pipeline
    config, tokens = pipe.unet.config, pipe.tokenizer.model_max_length
    like = {"device": pipe._execution_device, "dtype": pipe.unet.dtype}  # noqa: SLF001  # diffusers' own way to ask

    def call(rows: int) -> None:
        noisy = torch.zeros(rows, config.in_channels, *size, **like)
        embeds = torch.zeros(rows, tokens, config.cross_attention_dim, **like)
        network(noisy, [0.0] * rows, embeds)
        if noisy.is_cuda:
            torch.cuda.synchronize(noisy.device)

    return call


def _measure(call: Callable[[int], None], device: torch.device) -> tuple[int, dict[int, float]]:
    """The fewest rows that are about as cheap, row by row, as the cheapest; and all times."""
    seconds: dict[int, float] = {}
    for rows in TRIED:
        try:
            call(rows)  # the first of a size may choose kernels, or compile
            seconds[rows] = _timed(call, rows)
        except torch.OutOfMemoryError:
            if not seconds:
                raise
            torch.cuda.empty_cache()
            break
        if not _bearable(seconds, rows) or not _has_room(device):
            break
    bearable = {rows: each for rows, each in seconds.items() if _bearable(seconds, rows)}
    cheapest = min(each / rows for rows, each in bearable.items())
    worth = [rows for rows, each in bearable.items() if each / rows <= cheapest * (1 + GAIN)]
    return min(worth), seconds


def _bearable(seconds: dict[int, float], rows: int) -> bool:
    """Where one row alone takes as long, as when the weights are moved in each call, more may."""
    return seconds[rows] <= max(LONGEST_S, 1.5 * seconds[1])


def _timed(call: Callable[[int], None], rows: int) -> float:
    """Seconds of a call: the fastest of two, of a short one of a few, since others disturb it."""
    times = [_once(call, rows)]
    while len(times) == 1 or (len(times) < CALLS and sum(times) + times[-1] < BRIEF_S):
        times.append(_once(call, rows))
    return min(times)


def _once(call: Callable[[int], None], rows: int) -> float:
    began_s = time.perf_counter()
    call(rows)
    return time.perf_counter() - began_s


def _has_room(device: torch.device) -> bool:
    """Whether twice the rows would fit: the growth of the peak, doubled, beside what is spared."""
    if device.type == "cpu":
        return True
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    held_bytes = torch.cuda.memory_allocated(device)
    unused_bytes = torch.cuda.memory_reserved(device) - held_bytes
    growth_bytes = torch.cuda.max_memory_allocated(device) - held_bytes
    return 2 * growth_bytes < free_bytes + unused_bytes - total_bytes * SPARE
