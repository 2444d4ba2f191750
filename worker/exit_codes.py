"""The exit statuses of commands and worker processes; `docs/operations.md` has them as a table."""

from __future__ import annotations

#: Of commands: what was asked for was not to be had, was asked for wrongly, or nobody answers.
FAILED, INVALID, UNAVAILABLE = 1, 2, 3
#: Of a worker process: its device or its model fails, or a step does not end. (`INVALID`: its
#: settings are refused.)
DEVICE_FAILED, STALLED = 70, 75
#: Of a command that Ctrl-C ended, as shells have it.
INTERRUPTED = 130
