"""Writes the spans of a worker process, by OpenTelemetry. Start at `traces`, then `spans`.

Off unless the environment asks for it; then nothing of OpenTelemetry is imported. Knows claims and
stages; must not know how a task is run.
"""
