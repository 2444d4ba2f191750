"""A process manager whose processes exit when the test says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.supervisor.child_process import ChildProcess
from worker.supervisor.process_manager import ProcessManager

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping

GRACE_S = 120.0


class Stub(ChildProcess):
    """A process that exits when the test says so."""

    def __init__(self, owner: str, pid: int) -> None:
        self.owner, self.pid = owner, pid
        self.exit_status: int | None = None
        self.signals: list[signal.Signals] = []
        self.is_closed = False

    def status(self) -> int | None:
        """None until the test ends it."""
        return self.exit_status

    def send_signal(self, number: signal.Signals) -> None:
        """Note the signal."""
        assert not self.is_closed
        self.signals.append(number)

    def close(self) -> None:
        """Is called after the exit only."""
        assert self.exit_status is not None
        self.is_closed = True


class Bench:
    """A manager of stubs, and all that it did."""

    def __init__(self, *names: str) -> None:
        self.started: list[Stub] = []
        self.exited: list[tuple[str, float]] = []
        self.error: Exception | None = None
        self.manager = ProcessManager(
            {name: {"SLOT": name} for name in names},
            self.start,
            lambda owner, now_s: self.exited.append((owner, now_s)),
            GRACE_S,
        )

    def start(self, name: str, environment: Mapping[str, str]) -> Stub:
        """Start a stub, or fail if the test says so."""
        assert environment == {"SLOT": name}
        if self.error is not None:
            raise self.error
        stub = Stub(f"{name}:{len(self.started)}", len(self.started))
        self.started.append(stub)
        return stub

    @property
    def owners(self) -> list[str]:
        """All that were started, in order."""
        return [stub.owner for stub in self.started]
