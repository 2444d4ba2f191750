"""The exporter: queue, pool and health of the service as Prometheus metrics and JSON.

One process for a pool, beside the workers: it holds no task and only reads Redis. It knows no
engine, S3 or Celery, so it needs nothing of the extra `worker`. Read `pool_status` first.
"""
