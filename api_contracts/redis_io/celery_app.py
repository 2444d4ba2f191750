"""Celery applications that only their arguments configure, not the process around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.loaders.app import AppLoader

from api_contracts import names
from api_contracts.redis_io.address import RedisAddress
from api_contracts.redis_io.connection import CONNECT_S

if TYPE_CHECKING:
    from kombu import Connection


class EnvironmentBlindLoader(AppLoader):
    """Celery's loader of applications, which does not import what CELERY_CONFIG_MODULE names."""

    def read_configuration(self, env: str = "") -> dict[str, Any]:  # noqa: ARG002  # Celery's signature
        """No configuration."""
        return {}


def celery_app(name: str, broker_url: str, **configuration: Any) -> Celery:  # noqa: ANN401  # Celery's settings
    """An application for a broker; `configuration` are more of Celery's settings.

    It affects no other application in this process, and neither those nor Django's fixup affect
    it. The loader is given because Celery would take the one that CELERY_LOADER names. Raises
    ValueError for a bad URL.
    """
    address = RedisAddress.parse(broker_url)
    app = Celery(name, set_as_current=False, fixups=[], loader=EnvironmentBlindLoader)
    settings = {
        "broker_url": address.url,
        "broker_transport": "api_contracts.redis_io.transport:Transport",
        "broker_transport_options": names.TRANSPORT_OPTIONS,
        "broker_connection_timeout": CONNECT_S,
        "task_serializer": "json",
        **address.celery_tls("broker_use_ssl"),
        **configuration,
    }
    settings["broker_transport_options"] = {
        **settings["broker_transport_options"], **address.options, "address": address
    }  # fmt: skip
    app.conf.update(settings)
    return app


def connection_for_write(app: Celery) -> Connection:
    """A connection to the application's own broker, which Celery replaces by CELERY_BROKER_URL."""
    return app.connection_for_write(app.conf["broker_url"])
