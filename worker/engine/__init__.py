"""Denoises many jobs at once on one device. Start at `engine`, then `batch`.

Owns models, samplers and Self-Attention Guidance (SAG). Must not know Celery, Redis or S3.
"""
