"""Celery and kombu as this worker changes them. Start at `transport`.

Owns every override of their private parts and the messages that are held. Knows no task record.
"""
