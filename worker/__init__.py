"""The SAG worker. Start at `worker.app` (Celery settings) or `worker.runtime` (one process).

It has no code on purpose, as every package of `worker`: with re-exports, importing any name would
load torch.
"""
