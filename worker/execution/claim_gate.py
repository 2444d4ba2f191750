"""Whether this process may claim tasks: one answer, for the transport, `health` and the metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.recovery.lease import Lease


#: Reason of a process that is stopping; a failure replaces it.
LEAVING = "leaving"


class ClaimGate:
    """Open until it is closed, while leases are renewed."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._closed_because: str | None = None

    def close(self, reason: str) -> None:
        """Claim nothing more in this process; the first reason but `LEAVING` is kept."""
        if self._closed_because in (None, LEAVING):
            self._closed_because = reason

    @property
    def closed_because(self) -> str | None:
        """Why it was closed, whatever the leases are; None if it was not."""
        return self._closed_because

    @property
    def refusal(self) -> str | None:
        """Why no task would be claimed now; None when one would be."""
        if self._closed_because is not None:
            return self._closed_because
        if not self._lease.is_well:
            return f"no lease could be renewed for {self._lease.silent_s:.0f} s"
        return None
