"""What keeps or recovers tasks when something dies: leases, reconciler, watchdog. Start at `lease`.

Owns all timeouts of that protocol. Knows no engine and no picture.
"""
