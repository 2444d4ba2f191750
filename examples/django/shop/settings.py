"""Settings: no database, and two of Redis, which know nothing of each other."""

import os

ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "shop.urls"
MIDDLEWARE = ["shop.refusals.Refusals"]

# Where the SAG workers are.
SAG_BROKER_URL = os.environ.get("SAG_BROKER_URL", "redis://127.0.0.1:6379/0")
SAG_NAMESPACE = os.environ.get("SAG_NAMESPACE", "sag")

# Where this project's own Celery worker is.
CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL", "redis://127.0.0.1:6379/1")
CELERY_RESULT_BACKEND = CELERY_BROKER_URL
CELERY_TASK_DEFAULT_QUEUE = "shop"
