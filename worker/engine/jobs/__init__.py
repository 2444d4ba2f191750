"""A job: what goes in and comes out, how it waits, runs and ends.

Knows no network. Start at `job`, then `running_job`.
"""
