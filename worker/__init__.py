"""The SAG worker. Start at `worker.app` (Celery settings) or `worker.runtime` (one process).

Empty on purpose, as in every package here: a re-export would load torch for whoever imports a name.
"""
