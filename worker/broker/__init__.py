"""Celery and kombu as this worker changes them. Start at `transport`.

Owns every override of their private functions, and the messages that workers hold. Knows no task
record.
"""
