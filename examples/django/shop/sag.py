"""The way to the SAG workers."""

from functools import cache

from django.conf import settings

from api_contracts import GenerationClient


@cache
def client() -> GenerationClient:
    """This process's client, for all its threads; made when one asks, so after every fork."""
    return GenerationClient(settings.SAG_BROKER_URL, namespace=settings.SAG_NAMESPACE)
