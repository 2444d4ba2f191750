"""Connections to Redis and the Lua scripts that clients and workers run. Start at `connection`.

Owns URLs, TLS, timeouts and script loading. Knows no task.
"""
