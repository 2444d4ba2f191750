"""When a worker process that ended is started again, and what its exit status says."""

from __future__ import annotations

import signal

from worker.exit_codes import DEVICE_FAILED, INVALID, STALLED

#: The first pause, which each further one doubles, the longest, and after how long a life the next
#: one is the first again, in seconds.
FIRST_S, LONGEST_S, SETTLED_S = 0.1, 60.0, 60.0
#: The first pause where the same is likely to happen again, in seconds.
_FIRST_S = {DEVICE_FAILED: 1.0, STALLED: 1.0}
#: multiprocessing's, for a process whose server died before it did.
_UNKNOWN = 255
_REASONS = {
    INVALID: "its settings are refused",
    DEVICE_FAILED: "its device or its model fails",
    STALLED: "it stalled",
    _UNKNOWN: "the process that forked it is gone",
}


def pause_s(status: int, lived_s: float, last_s: float) -> float:
    """How long to wait with the next start; `last_s` is the pause before the one that ended."""
    first_s = _FIRST_S.get(status, FIRST_S)
    if lived_s >= SETTLED_S:
        return first_s
    return min(LONGEST_S, max(first_s, 2 * last_s))


def reason(status: int) -> str:
    """What a status says, in words; a negative one is a signal's number."""
    if status >= 0:
        return f"status {status}" + (f", {_REASONS[status]}" if status in _REASONS else "")
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name here
        return f"killed by signal {-status}"
