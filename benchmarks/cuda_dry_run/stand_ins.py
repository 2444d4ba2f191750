"""Stand-ins for what asks a driver: `torch.cuda`, pinned memory, and indexing without CUDA.

Also for what fake tensors can't do when LoRA weights are loaded.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.cuda_dry_run.device import FakeCuda


@contextmanager
def installed(device: FakeCuda) -> Iterator[None]:
    """Replace them while the context lasts."""
    with ExitStack() as stack:

        def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
            return device.pin(tensor)

        for name, stand_in in _cuda(device).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", pin_memory))
        stack.enter_context(mock.patch.object(torch.utils, "swap_tensors", _same))
        stack.enter_context(mock.patch.dict(os.environ, _ONE_THREAD))
        if not torch.backends.cuda.is_built():
            for name, stand_in in _UNGUARDED.items():
                stack.enter_context(mock.patch.object(FakeTensor, name, stand_in, create=True))
        yield


def _cuda(device: FakeCuda) -> dict[str, Callable[..., Any]]:
    memory = device.memory

    class Event:
        """An event of a stream; waiting for it is a wait."""

        def __init__(self, *, blocking: bool = False) -> None:
            """`blocking` frees the core of who waits."""

        def record(self, _stream: object = None) -> None:
            """Record it."""

        def synchronize(self) -> None:
            """Wait for it."""
            device.wait("cudaEventSynchronize")

    def reset_peak(_device: object = None) -> None:
        memory.peak_bytes = memory.alive_bytes

    return {
        "Event": Event,
        "current_stream": lambda _device=None: None,
        "synchronize": lambda _device=None: device.wait("cudaDeviceSynchronize"),
        "empty_cache": lambda: None,
        "mem_get_info": lambda _device=None: (
            memory.total_bytes - memory.alive_bytes,
            memory.total_bytes,
        ),
        "memory_reserved": lambda _device=None: memory.alive_bytes,
        "memory_allocated": lambda _device=None: memory.alive_bytes,
        "max_memory_allocated": lambda _device=None: memory.peak_bytes,
        "reset_peak_memory_stats": reset_peak,
    }


def _same(tensor: torch.Tensor, converted: torch.Tensor) -> None:
    """A network's `to` that changes nothing: fake tensors can't be swapped, as torch would."""
    assert (tensor.device, tensor.dtype) == (converted.device, converted.dtype)


def _item(tensor: torch.Tensor) -> Any:  # noqa: ANN401  # torch's
    """`tensor.item()`, without the device guard."""
    return torch.ops.aten._local_scalar_dense.default(tensor)  # noqa: SLF001  # torch's name


def _getitem(tensor: torch.Tensor, index: Any) -> torch.Tensor:  # noqa: ANN401  # torch's
    """`tensor[index]`, which asks CUDA's device guard, by operators, which do not."""
    items = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [each for each in items if not isinstance(each, torch.Tensor)]:
        at = next(i for i, each in enumerate(items) if each is Ellipsis)
        named = sum(each is not None for each in items) - 1
        fill = (slice(None),) * (tensor.ndim - named)
        items = (*items[:at], *fill, *items[at + 1 :])
    dim = 0
    tensor_indices: list[torch.Tensor | None] = []
    for each in items:
        if each is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(each, int):
            tensor = tensor.select(dim, each)
            continue
        elif isinstance(each, slice):
            if each != slice(None):
                tensor = torch.ops.aten.slice.Tensor(
                    tensor, dim, each.start, each.stop, each.step or 1
                )
        else:
            tensor_indices += [None] * (dim - len(tensor_indices)) + [torch.as_tensor(each)]
        dim += 1
    return torch.ops.aten.index.Tensor(tensor, tensor_indices) if tensor_indices else tensor


def _method(operator: Any) -> Callable[..., Any]:  # noqa: ANN401  # torch's
    """A method that calls an operator."""

    def call(tensor: torch.Tensor, **options: Any) -> Any:  # noqa: ANN401  # torch's
        return operator(tensor, **options)

    return call


#: transformers loads LoRA weights in other threads unless told, where the device is not known.
_ONE_THREAD = {"HF_DEACTIVATE_ASYNC_LOAD": "1"}
#: Methods that ask the device guard, which a torch without CUDA does not have.
_UNGUARDED: dict[str, Callable[..., Any]] = {
    "__getitem__": _getitem,
    "__float__": _item,
    "__int__": _item,
    "item": _item,
    "__invert__": _method(torch.ops.aten.bitwise_not),
    "contiguous": _method(torch.ops.aten.contiguous),
    "nonzero": _method(torch.ops.aten.nonzero),
}
