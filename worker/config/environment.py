"""Reads the settings from the environment, which other programs and platforms write, too."""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING

from worker.config.settings import MAY_BE_EMPTY, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

logger = logging.getLogger(__name__)

#: Variables that Celery prefers to its configuration.
CELERY_VARIABLES = (
    "CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL",
    "CELERY_RESULT_BACKEND",
)  # fmt: skip
#: Variables that Celery's command line and its loader read, and this program does not.
UNHEARD_VARIABLES = ("BROKER_URL", "RESULT_BACKEND", "CELERY_LOADER", "CELERY_CONFIG_MODULE")
#: What Kubernetes puts into SAG_METRICS_PORT in a namespace with a Service named sag-metrics.
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")


def read() -> Settings:
    """Read the settings; raises `ValidationError`, or `SettingsError` for what is not JSON.

    Celery's own variables are removed with a warning: they would override the settings.
    """
    for what in cleaned(os.environ):
        logger.warning("%s", what)
    return Settings()


def cleaned(environment: MutableMapping[str, str]) -> Iterator[str]:
    """Remove what is no setting, though Celery or pydantic would read it; yields warnings.

    An empty URL stays, and is refused: its default would be another server.
    """
    for name in CELERY_VARIABLES:
        if environment.pop(name, None):
            yield f"{name} is ignored; use the SAG_… variables"
    for name in UNHEARD_VARIABLES:
        if environment.get(name):
            yield f"{name} is ignored; use the SAG_… variables"
    for field in Settings.model_fields:
        name = f"SAG_{field.upper()}"
        value = environment.get(name)
        if value == "" and field not in MAY_BE_EMPTY and not field.endswith("_url"):
            del environment[name]  # as templates write a variable that is not set
            yield f"{name} is empty: ignored, as if it were not set"
        elif value is not None and field.endswith("_port") and _SERVICE_LINK.match(value):
            del environment[name]
            yield (
                f"{name}={value} is ignored: Kubernetes sets it for a Service; set"
                " enableServiceLinks: false, or rename the Service"
            )


def unknown_variables(environment: dict[str, str] | None = None) -> list[str]:
    """Return the variables that begin with `SAG_` and are no setting: misspelt or outdated ones."""
    known = {f"SAG_{name.upper()}" for name in Settings.model_fields}
    present = os.environ if environment is None else environment
    return sorted(name for name in present if name.startswith("SAG_") and name not in known)
