"""The `sag-worker` commands. Start at `main`.

Owns options, terminal output and exit codes. Imports torch in no command but `run` and `doctor`.
"""
