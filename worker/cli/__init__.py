"""The `sag-worker` commands. Start at `main`.

Owns options, terminal output and exit codes. Of the commands only `work` and `doctor` import
torch; for `run` the fork server does.
"""
