"""Exit statuses of commands and worker processes; the table is in `docs/operations.md`."""

from __future__ import annotations

#: Of commands: the result is negative; wrong settings, options or request; no server answers.
FAILED, INVALID, UNAVAILABLE = 1, 2, 3
#: Of a worker process: its device or model fails; a step hangs. (`INVALID`: wrong settings.)
DEVICE_FAILED, STALLED = 70, 75
#: Of a command that Ctrl-C ended, as shells define it.
INTERRUPTED = 130
