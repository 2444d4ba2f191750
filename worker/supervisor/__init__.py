"""The parent process of `sag-worker run`: one child process for each device. Start at `supervisor`.

Owns starting, restarting and stopping children and releasing what a dead child held. Knows no task.
"""
