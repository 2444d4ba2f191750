"""A CUDA device without hardware: fake tensors on it, real ones on the host.

A dispatch mode sees every operator. Operators on the host alone run. Those that touch the device
run on fake tensors: shape, type and device, no data. What is copied to the host is random, so that
the code behind it runs too.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cuda_dry_run import operators, place
from benchmarks.cuda_dry_run.allowed import reason_and_value
from benchmarks.cuda_dry_run.tally import Fault, Memory, Tally, Wait

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The one device. With an index, since torch asks a driver for the current device otherwise.
DEVICE = "cuda:0"
#: Types that a model's device must not compute in: 1/64 of the speed on most cards.
DOUBLE = frozenset({torch.float64, torch.complex128})


class FakeCuda(TorchDispatchMode):
    """The device, and what was asked of it. Use it as a context, below `FakeTensorMode`."""

    def __init__(self, total_bytes: int) -> None:
        super().__init__()
        self.memory = Memory(total_bytes)
        self.faults: list[Fault] = []
        self.waits: list[Wait] = []
        #: Every call that has ended, in order of their beginnings.
        self.tallies: list[Tally] = []
        self._open: list[Tally] = [Tally("outside of the calls")]
        self._pinned: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._storages: set[int] = set()

    @contextmanager
    def call(self, kind: str) -> Iterator[Tally]:
        """Count what happens inside as one call of `kind`."""
        alive_bytes = self.memory.alive_bytes
        tally = Tally(kind, alive_bytes, alive_bytes)
        self.tallies.append(tally)
        self._open.append(tally)
        try:
            yield tally
        finally:
            self._open.remove(tally)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Stand-in for `Tensor.pin_memory`: a copy that counts as pinned."""
        with unset_fake_temporarily():
            pinned = tensor.clone()
        self._pinned.add(pinned.untyped_storage())
        return pinned

    def wait(self, op: str, value: Any = None) -> Any:  # noqa: ANN401  # what the reader gets
        """The host waits; returns what it reads. A fault where no rule allows it."""
        found = place.here()
        call = self._open[-1].kind
        reason, value = reason_and_value(call, op, found, value)
        waited = Wait(call, op, found, reason)
        self.waits.append(waited)
        for tally in self._open:
            tally.waits.append(waited)
        if reason is None:
            self._fault("the host waits for the device", op)
        return value

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  # torch's signature
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # torch's signature
        """Run one operator."""
        del types
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks for the device, the layout, …
            return func(*args, **kwargs)
        if not operators.touches_device(args, kwargs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        with self:
            result = operators.parts(func, args, kwargs)
        if result is not NotImplemented:
            return result
        copied = operators.copy(func, args, kwargs)
        if copied is not None:
            return self._copy(func, copied)
        if operators.has_unknown_size(func, args):
            self.wait(operators.name(func))
            raise DynamicOutputShapeException(func)
        if func in operators.READS:
            return self.wait(operators.name(func), operators.nothing_read(func, args))
        if any(operators.is_host(each) and each.ndim for each in operators.indices(func, args)):
            self.wait(f"{operators.name(func)} with an index on the host")
        return self._launch(func, args, kwargs)

    def _launch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401  # torch's
        """Run an operator of the device on fake tensors."""
        try:
            result = operators.run(func, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            self.wait(operators.name(func))
            raise
        except RuntimeError as error:
            if operators.is_mixed(error):
                self._fault("tensors on several devices", operators.name(func))
            raise
        self._seen(func, result)
        if operators.launches(func):
            where = place.here()
            for tally in self._open:
                tally.kernels[where] += 1
        return result

    def _copy(self, func: Any, copied: operators.Copy) -> torch.Tensor:  # noqa: ANN401  # torch's
        """A copy between host and device. One from pageable memory, or to the host, waits."""
        op, size_bytes = operators.name(func), copied.size_bytes
        for tally in self._open:
            if copied.to_host:
                tally.to_host_bytes += size_bytes
            else:
                tally.to_device_bytes += size_bytes
        if copied.to_host:
            self.wait(f"{op} to the host")
            return operators.materialised(copied)
        pinned = copied.source.untyped_storage() in self._pinned
        if not (pinned and copied.non_blocking):
            self.wait(f"{op} to the device, {'blocking' if pinned else 'from pageable memory'}")
        result = operators.placed(copied, DEVICE)
        self._seen(func, result)
        return result

    def _seen(self, func: Any, result: Any) -> None:  # noqa: ANN401  # torch's
        """Take note of the storages of a result, and of its type."""
        for tensor in operators.tensors((result,), {}):
            if not operators.is_device(tensor):
                continue
            if tensor.dtype in DOUBLE:
                self._fault(f"{tensor.dtype} on the device", operators.name(func))
            storage = tensor.untyped_storage()
            key = storage._cdata  # noqa: SLF001  # as torch.multiprocessing has it
            if key not in self._storages:
                self._storages.add(key)
                self.memory.taken(storage.nbytes())
                weakref.finalize(storage, self._freed, key, storage.nbytes())
        for tally in self._open:
            tally.peak_bytes = max(tally.peak_bytes, self.memory.alive_bytes)

    def _freed(self, key: int, size_bytes: int) -> None:
        self._storages.discard(key)
        self.memory.freed(size_bytes)

    def _fault(self, what: str, op: str) -> None:
        self.faults.append(Fault(self._open[-1].kind, what, op, place.here()))


@contextmanager
def fake_cuda(total_bytes: int) -> Iterator[FakeCuda]:
    """The device for the current thread."""
    with FakeTensorMode(allow_non_fake_inputs=True), FakeCuda(total_bytes) as device:
        yield device
