"""The parent process of `sag-worker run`: worker processes for each device. Start at `supervisor`.

Owns starting, restarting and stopping processes, and releasing the messages of exited ones. Knows
no task, no `app` and no `cli`: the function that a worker runs is an argument.
"""
