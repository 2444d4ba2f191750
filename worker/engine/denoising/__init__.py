"""One UNet call over rows of any jobs, and the equations that guide it.

Knows no queue of jobs. Start at `unet`, then `passes` and `guidance`.
"""
