"""aten operators: which of them launch a kernel, read the device, or copy to and from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

aten = torch.ops.aten

#: One kernel each on CUDA, though torch can write them as several operators. The decomposition of
#: attention would ask the driver which kernel the card has.
FUSED = frozenset({aten.scaled_dot_product_attention.default})
#: Operators that make the host wait for a number of the device.
READS = frozenset(
    {aten._local_scalar_dense.default, aten._linalg_check_errors.default, aten.equal.default}  # noqa: SLF001  # torch's own names
)
#: Operators whose result has a size that only the device knows.
_UNKNOWN_SIZE = frozenset({aten.nonzero.default, aten.masked_select.default})
#: Operators that neither launch a kernel nor are views by their schema.
_NO_KERNEL = frozenset(
    {
        "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh",
        "detach", "alias", "_unsafe_view", "_reshape_alias", "set_", "resize_", "record_stream",
        "is_same_size", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset",
    }
)  # fmt: skip
_INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})


@dataclass(frozen=True)
class Copy:
    """A copy between host and device."""

    source: torch.Tensor
    #: Given for a copy in place.
    target: torch.Tensor | None
    dtype: torch.dtype
    to_host: bool
    non_blocking: bool

    @property
    def size_bytes(self) -> int:
        """Bytes that are moved."""
        return self.source.numel() * self.dtype.itemsize


def name(func: Any) -> str:  # noqa: ANN401  # torch's
    """As errors name it, such as aten.add.Tensor."""
    return str(func)


def tensors(args: Iterable[Any], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """All tensors of the arguments, also those in lists."""
    for each in (*args, *kwargs.values()):
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, (list, tuple)):
            yield from (one for one in each if isinstance(one, torch.Tensor))


def is_device(tensor: torch.Tensor) -> bool:
    """Whether a tensor is on the device: those and no others are fake."""
    return isinstance(tensor, FakeTensor)


def is_host(tensor: Any) -> bool:  # noqa: ANN401  # an argument
    """Whether an argument is a tensor on the host."""
    return isinstance(tensor, torch.Tensor) and not is_device(tensor)


def touches_device(args: Iterable[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator with these arguments has to do with the device."""
    wanted = (each for each in (*args, kwargs.get("device")) if isinstance(each, torch.device))
    return any(each.type == "cuda" for each in wanted) or any(map(is_device, tensors(args, kwargs)))


def launches(func: Any) -> bool:  # noqa: ANN401  # torch's
    """Whether an operator launches a kernel: it is no view and allocates or asks only."""
    return not func.is_view and func._opname not in _NO_KERNEL  # noqa: SLF001  # torch's only name


def has_unknown_size(func: Any, args: tuple[Any, ...]) -> bool:  # noqa: ANN401  # torch's
    """Whether only the device knows the size of the result."""
    return func in _UNKNOWN_SIZE or any(each.dtype == torch.bool for each in indices(func, args))


def indices(func: Any, args: tuple[Any, ...]) -> list[Any]:  # noqa: ANN401  # torch's
    """The tensors by which an operator indexes; of the host, the kernel copies them first."""
    if func._opname not in _INDEXING:  # noqa: SLF001  # torch's only name
        return []
    return [each for each in args[1] if each is not None]


def copy(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Copy | None:  # noqa: ANN401  # torch's
    """The copy between host and device that an operator is; None for all others."""
    match func._opname:  # noqa: SLF001  # torch's only name
        case "_to_copy":
            source, target, wanted = args[0], None, kwargs.get("device")
            to_host = wanted is not None and torch.device(wanted).type == "cpu"
            is_between = wanted is not None and is_device(source) == to_host
            dtype = kwargs.get("dtype") or source.dtype
        case "copy_":
            target, source = args[:2]
            to_host, is_between = is_device(source), is_device(source) != is_device(target)
            dtype = target.dtype
        case _:
            return None
    non_blocking = bool(args[2] if args[2:] else kwargs.get("non_blocking", False))
    return Copy(source, target, dtype, to_host, non_blocking) if is_between else None


def placed(copied: Copy, device: str) -> torch.Tensor:
    """The tensor on the device that a copy from the host gives."""
    if copied.target is not None:
        return copied.target
    return torch.empty(copied.source.shape, dtype=copied.dtype, device=device)


def materialised(copied: Copy) -> torch.Tensor:
    """The tensor on the host that a copy from the device gives, with random numbers."""
    with unset_fake_temporarily():
        made = torch.zeros(tuple(copied.source.shape), dtype=copied.dtype)
        if copied.dtype.is_floating_point:
            made.uniform_()
        return made if copied.target is None else copied.target.copy_(made)


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401  # torch's
    """The result of an operator of the device on fake tensors."""
    if func in FUSED:
        query, value = args[0], args[2]
        return query.new_empty((*query.shape[:-1], value.shape[-1]))
    return func(*args, **kwargs)


def parts(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401  # torch's
    """The result of an operator that C++ writes as others; NotImplemented for one that is a kernel.

    In inference mode torch shows such an operator whole. Its decompositions in Python are no way to
    count kernels: they write one kernel of CUDA as several.
    """
    key = torch._C.DispatchKey.CompositeImplicitAutograd  # noqa: SLF001  # torch's only name
    if func in FUSED or not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):  # noqa: SLF001  # no public one
        return NotImplemented
    return func._op_dk(key, *args, **kwargs)  # noqa: SLF001  # as `OpOverload.decompose`


def nothing_read(func: Any, args: tuple[Any, ...]) -> Any:  # noqa: ANN401  # torch's
    """What a read gives where nothing else is known: zero in the tensor's type."""
    if func is aten._linalg_check_errors.default:  # noqa: SLF001  # torch's name
        return None
    if func is aten.equal.default:
        return False
    dtype = args[0].dtype
    if dtype == torch.bool:
        return False
    return 0.0 if dtype.is_floating_point else 0


def is_mixed(error: RuntimeError) -> bool:
    """Whether fake tensors refused an operator on tensors of several devices."""
    text = str(error)
    return "on the same device" in text or "two different devices" in text
