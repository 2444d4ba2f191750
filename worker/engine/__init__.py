"""Denoises many jobs at once on one device. Start at `engine`, then `batch`.

Owns models, samplers and Self-Attention Guidance (SAG). Must not know Celery, Redis or S3.
`jobs` has what is asked and how it ends, `loading` and `device` the models, `families` how they
differ, `sampling` the schedulers, `denoising` the UNet call and its guidance.
"""
