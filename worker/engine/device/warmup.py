"""Measures how many rows one UNet call, and how many images one decode, should have here."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import torch

from worker.engine.device import device_errors, device_memory
from worker.engine.device.capacity import MAX_ROWS, Capacity
from worker.engine.families.conditioning import in_precision, stack
from worker.engine.pipeline import native_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.engine.loaded_model import LoadedModel
    from worker.engine.pipeline import Pipeline

logger = logging.getLogger(__name__)

#: Numbers of rows that are measured.
TRIED_ROWS = (1, 2, 4, 8, 16, 32, 64)
#: Longest acceptable call, in seconds: a new task or a cancel may wait this long.
MAX_CALL_S = 0.5
#: Most calls of one size that are timed, while all of them together take less than the budget.
TIMED_CALLS, TIMING_BUDGET_S = 4, 0.15
#: More rows must make each row cheaper by this share to be worth the longer call.
MIN_GAIN = 0.05
#: Least share of the device's memory that is left to the decoder and to others.
SPARE_MEMORY = 0.2
#: Rows where memory sets no limit.
_NO_LIMIT = 1e9


def decode_capacity(model: LoadedModel, max_images: int) -> tuple[Capacity, int]:
    """How many images of the model's own size one decode may have, and the bytes that one needs.

    Measured on a GPU by decoding one image; on a CPU memory sets no limit. Where that image is out
    of memory, 1 and 0 bytes: smaller ones may fit.
    """
    height, width = native_size(model.pipeline)
    device = torch.device(model.device)
    if device.type == "cpu":
        return Capacity(_NO_LIMIT, height * width, max_images), 0
    if not (needed_bytes := _decode_bytes(model, device, (height, width))):
        torch.cuda.empty_cache()  # here, since the error has kept the call's tensors
        return Capacity(1.0, height * width, max_images), 0
    images = max(1.0, device_memory.free_bytes(device) / needed_bytes)
    logger.info(
        "at most %d images of %d x %d latents per decode; one needs %.1f GiB",
        min(images, max_images), height, width, needed_bytes / 2**30,
    )  # fmt: skip
    return Capacity(images, height * width, max_images), needed_bytes


def _decode_bytes(model: LoadedModel, device: torch.device, size: tuple[int, int]) -> int:
    """The bytes that the decode of one image needs, beside its weights; 0 if out of memory."""
    vae = model.pipeline.vae
    like = {"device": device, "dtype": vae.dtype}
    torch.cuda.reset_peak_memory_stats(device)
    try:
        vae.decode(torch.zeros(1, model.latent_channels, *size, **like))
    except RuntimeError as error:
        if not device_errors.is_out_of_memory(error):
            raise
        logger.warning("decoding an image of %d x %d latents is out of memory", *size)
        return 0
    return max(1, device_memory.growth_bytes(device))


def unmeasured(pipe: Pipeline, max_rows: int | None) -> Capacity:
    """What `max_rows` says, or as if every call fitted: what one image needs is always tried."""
    height, width = native_size(pipe)
    rows = MAX_ROWS if max_rows is None else max_rows
    return Capacity(rows, height * width, rows)


def capacity(
    model: LoadedModel, unet: Callable[..., Any], max_rows: int | None, decoder_bytes: int = 0
) -> Capacity:
    """Measure the capacity of the device; with `max_rows` only warm up with a call of two rows.

    `unet` takes latents, timesteps and conditioning. `decoder_bytes` of memory are left free.
    """
    height, width = native_size(model.pipeline)
    call = _caller(model, unet, (height, width))
    if max_rows is not None:
        call(2)
        return Capacity(max_rows, height * width, max_rows)
    device = torch.device(model.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rows, seconds = _measure(call, lambda: _has_room(device, decoder_bytes))
    shown = ", ".join(f"{n}: {1000 * each:.0f} ms" for n, each in seconds.items())
    logger.info("at most %d rows per UNet call; times by rows: %s", rows, shown)
    return Capacity(rows, height * width)


def _caller(
    model: LoadedModel, unet: Callable[..., Any], size: tuple[int, int]
) -> Callable[[int], None]:
    channels = model.pipeline.unet.config.in_channels
    like: dict[str, Any] = {"device": torch.device(model.device), "dtype": model.unet_dtype}
    blank = {
        name: in_precision(each, model.unet_dtype).to(like["device"])
        for name, each in model.family.blank(model.pipeline).items()
    }

    def call(rows: int) -> None:
        noisy = torch.zeros(rows, channels, *size, **like)
        unet(noisy, [0.0] * rows, stack([blank] * rows))
        if noisy.is_cuda:
            torch.cuda.synchronize(noisy.device)

    return call


def _measure(
    call: Callable[[int], None], has_room: Callable[[], bool]
) -> tuple[int, dict[int, float]]:
    """The fewest rows whose time per row is within `MIN_GAIN` of the best; all times by rows."""
    seconds: dict[int, float] = {}
    for rows in TRIED_ROWS:
        try:
            call(rows)  # not timed: the first call of a size may select kernels, or compile
            seconds[rows] = _best_s(call, rows)
        except RuntimeError as error:
            if not seconds or not device_errors.is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            break
        if not _is_short(seconds, rows) or not has_room():
            break
    short = {rows: each for rows, each in seconds.items() if _is_short(seconds, rows)}
    cheapest_s = min(each / rows for rows, each in short.items())
    worth = [rows for rows, each in short.items() if each / rows <= cheapest_s * (1 + MIN_GAIN)]
    return min(worth), seconds


def _is_short(seconds: dict[int, float], rows: int) -> bool:
    """Whether a call is short enough; more is allowed when one row takes long, as with offload."""
    return seconds[rows] <= max(MAX_CALL_S, 1.5 * seconds[1])


def _best_s(call: Callable[[int], None], rows: int) -> float:
    """The fastest of 2 calls, or of up to `TIMED_CALLS` short ones: other load disturbs them."""
    times_s = [_call_s(call, rows)]
    while len(times_s) == 1 or (
        len(times_s) < TIMED_CALLS and sum(times_s) + times_s[-1] < TIMING_BUDGET_S
    ):
        times_s.append(_call_s(call, rows))
    return min(times_s)


def _call_s(call: Callable[[int], None], rows: int) -> float:
    began_s = time.perf_counter()
    call(rows)
    return time.perf_counter() - began_s


def _has_room(device: torch.device, decoder_bytes: int) -> bool:
    """Whether twice the rows would fit: twice the peak's growth, and still enough free.

    That is what a decode needs, and `SPARE_MEMORY` at least.
    """
    if device.type == "cpu":
        return True
    spare_bytes = max(device_memory.total_bytes(device) * SPARE_MEMORY, decoder_bytes)
    return 2 * device_memory.growth_bytes(device) < device_memory.free_bytes(device) - spare_bytes
