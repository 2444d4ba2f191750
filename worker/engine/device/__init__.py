"""The device: its memory, what fits into a call, which networks are on it, what its errors mean.

Knows no queue of jobs. Start at `offload`, then `warmup`.
"""
