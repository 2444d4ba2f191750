"""The SAG worker. Start at `worker.app` (Celery settings) or `worker.runtime` (one process).

Empty on purpose, as in every package here: with re-exports, importing any name would load torch.
"""
