"""The parent process of `sag-worker run`: worker processes for each device. Start at `supervisor`.

Owns starting, restarting and stopping processes and releasing what an exited one held. Knows no
task, no `app` and no `cli`: it is given the function that a worker runs.
"""
