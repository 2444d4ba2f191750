"""What a call of the engine asked of the device: kernels, copies, waits, memory. Knows no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.cuda_dry_run.place import Place


@dataclass(frozen=True)
class Wait:
    """The host waited for the device."""

    #: Kind of the innermost call.
    call: str
    #: What waits, such as an aten operator's name.
    op: str
    where: Place
    #: Why this one is allowed; None if it is not.
    reason: str | None


@dataclass(frozen=True)
class Fault:
    """What would be wrong, or slow, on a real device."""

    call: str
    what: str
    op: str
    where: Place

    def __str__(self) -> str:
        return f"{self.call}: {self.what}: {self.op} at {self.where}"


@dataclass
class Tally:
    """One call, with all calls inside it."""

    kind: str
    #: Bytes that were alive when the call began.
    began_bytes: int = 0
    peak_bytes: int = 0
    to_device_bytes: int = 0
    to_host_bytes: int = 0
    waits: list[Wait] = field(default_factory=list)
    #: Kernels by the place in the engine that launched them.
    kernels: Counter[Place] = field(default_factory=Counter)

    @property
    def launched(self) -> int:
        """Kernels of the call."""
        return self.kernels.total()

    @property
    def growth_bytes(self) -> int:
        """The most that was alive, beyond what was when the call began."""
        return max(0, self.peak_bytes - self.began_bytes)


@dataclass
class Memory:
    """Bytes of the storages that are alive on the device."""

    total_bytes: int
    alive_bytes: int = 0
    #: Since it was reset, as `torch.cuda.max_memory_allocated` has it.
    peak_bytes: int = 0

    def taken(self, size_bytes: int) -> None:
        """A storage was allocated."""
        self.alive_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)

    def freed(self, size_bytes: int) -> None:
        """A storage is gone."""
        self.alive_bytes -= size_bytes
