"""A Django project with a Celery application of its own, loaded with it as Celery's guide says."""

from .celery import app as celery_app

__all__ = ["celery_app"]
