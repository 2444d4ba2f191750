"""Reads and writes safetensors files; validates the tensors that it reads."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from worker.engine.jobs.job import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def read(data: bytes | None, where: str, shape: Sequence[int | str]) -> torch.Tensor | None:
    """The one tensor in `data`, or None without data; raises `BadRequestError` naming `where`.

    `shape` has a number for each fixed size and a word for each free one.
    """
    if data is None:
        return None
    try:
        found = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise refusal(where, f"is not a safetensors file: {error}", "safetensors") from error
    if len(found) != 1:
        raise refusal(where, f"holds {len(found)} tensors", "exactly one")
    tensor = next(iter(found.values()))
    expected = " x ".join(str(size) for size in shape)
    fits = tensor.ndim == len(shape) and all(
        isinstance(size, str) or size == actual
        for size, actual in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype not in _DTYPES or 0 in tensor.shape:
        what = f"is {tensor.dtype} of shape {tuple(tensor.shape)}"
        raise refusal(where, what, f"16 to 64 bit floats, {expected}")
    if not torch.isfinite(tensor).all():
        raise refusal(where, "holds values that are not finite", "finite")
    return tensor


def write(tensor: torch.Tensor) -> bytes:
    """A file that `read` accepts: the tensor, with a leading axis of one, as `latents`."""
    return safetensors.torch.save({"latents": tensor.unsqueeze(0).contiguous()})


def pack(header: Mapping[str, Any], named: Mapping[str, torch.Tensor]) -> bytes:
    """A file for `unpack`: tensors, a JSON header, and a digest of both. Waits for the device."""
    held = {
        # A contiguous copy of each: safetensors refuses tensors that share memory.
        name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in named.items()
    }
    text = json.dumps(header)
    return safetensors.torch.save(held, {"header": text, "digest": _digest(text, held)})


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a `pack`ed file, on the host.

    Raises ValueError where the digest does not match, and any exception for malformed files.
    """
    named = safetensors.torch.load(data)
    size_bytes = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size_bytes])["__metadata__"]
    if _digest(metadata["header"], named) != metadata["digest"]:
        raise ValueError("the digest does not match the content")
    header: dict[str, Any] = json.loads(metadata["header"])
    return header, named


def _digest(text: str, named: Mapping[str, torch.Tensor]) -> str:
    total = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in sorted(named.items()):
        total.update(name.encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
