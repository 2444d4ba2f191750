"""Settings from the environment and what they describe. Start at `settings`.

Owns validation of `SAG_...` variables. Knows no connection: nothing here talks to Redis or S3.
"""
