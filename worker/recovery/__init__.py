"""Keeps and recovers tasks: leases, reconciler, watchdog. Start at `timing`, then `lease`.

Owns the registry of active tasks and all durations of the protocol. Knows no engine and no image.
"""
