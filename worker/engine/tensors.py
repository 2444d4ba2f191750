"""Tensors in and out of safetensors files, checked before use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError

from api_contracts.errors import Fault
from worker.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Sequence


_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def read(data: bytes | None, where: str, shape: Sequence[int | str]) -> torch.Tensor | None:
    """The one tensor in `data`, or None without data; raises `BadRequest` naming `where`.

    `shape` has a number for each size that is fixed and a word for each that is free.
    """
    if data is None:
        return None
    try:
        found = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        what = f"is not a safetensors file: {error}"
        raise BadRequest(Fault(where=where, what=what[:300], limit="safetensors")) from error
    if len(found) != 1:
        what = f"holds {len(found)} tensors"
        raise BadRequest(Fault(where=where, what=what, limit="exactly one"))
    tensor = next(iter(found.values()))
    expected = " x ".join(str(size) for size in shape)
    fits = tensor.ndim == len(shape) and all(
        isinstance(size, str) or size == actual
        for size, actual in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype not in _DTYPES or 0 in tensor.shape:
        what = f"is {tensor.dtype} of shape {tuple(tensor.shape)}"
        raise BadRequest(Fault(where=where, what=what, limit=f"16 to 64 bit floats, {expected}"))
    if not torch.isfinite(tensor).all():
        raise BadRequest(
            Fault(where=where, what="holds values that are not finite", limit="finite")
        )
    return tensor


def write(tensor: torch.Tensor) -> bytes:
    """A file that `read` takes back: the tensor, with a leading axis of one, as `latents`."""
    return safetensors.torch.save({"latents": tensor.unsqueeze(0).contiguous()})
