"""Writes the spans of a worker process, by OpenTelemetry. Start at `traces`, then `spans`.

Off unless the environment asks for it; then the worker loads no exporter, and of OpenTelemetry only
what redis-py imports where it is installed. Knows claims and stages; must not know how a task is
run.
"""
