"""Denoising of many jobs at once on one device. Start at `engine`, then `batch`.

Owns models, samplers and Self-Attention Guidance. Knows no Celery, Redis or S3.
"""
