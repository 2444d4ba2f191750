"""Weights in the precision of their file stay in its pages, which all processes share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open

from tests.engine.jobs import SPEC, Rounds, job
from worker.config.models import SHIPPED_MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def precision(part: str) -> torch.dtype:
    """The precision of a part's file."""
    with safe_open(SHIPPED_MODEL / part / PARTS[part], "pt") as weights:
        dtype: torch.dtype = weights.get_tensor(next(iter(weights.keys()))).dtype
    return dtype


def mapped(file: Path) -> Iterator[tuple[int, int, int]]:
    """Begin, end and private bytes of each mapping of a file in this process."""
    begin = end = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            begin, end = (int(each, 16) for each in name.split("-"))
            is_here = values[-1] == str(file)
        elif is_here and name == "Private_Dirty:":
            yield begin, end, 1024 * int(values[0])


def bytes_in_file(pipe: Any, part: str) -> int:
    """Bytes of a part's parameters that are in its file; none of those pages is a private copy."""
    areas = list(mapped(SHIPPED_MODEL / part / PARTS[part]))
    assert sum(private for _, _, private in areas) == 0
    return sum(
        each.nbytes
        for each in getattr(pipe, part).parameters()
        if any(begin <= each.data_ptr() < end for begin, end, _ in areas)
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_in_the_precision_of_their_file_are_shared(dtype: str) -> None:
    """All weights in their file's precision stay in its pages, also after a picture."""
    rounds = Rounds(SPEC.model_copy(update={"dtype": dtype}))
    shared = {part for part in PARTS if precision(part) == getattr(torch, dtype)}
    assert shared
    for _ in range(2):
        for part in PARTS:
            expected = sum(each.nbytes for each in getattr(rounds.pipe, part).parameters())
            assert bytes_in_file(rounds.pipe, part) == (expected if part in shared else 0)
        rounds.result(job(num_inference_steps=2))
