"""Reads the settings from this process's environment; names variables that have no effect."""

from __future__ import annotations

import logging
import os

from worker.config.settings import Settings

logger = logging.getLogger(__name__)

#: Variables that Celery prefers to its configuration.
CELERY_VARIABLES = (
    "CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL",
    "CELERY_RESULT_BACKEND",
)  # fmt: skip


def read() -> Settings:
    """Read the settings; raises `ValidationError`, or `SettingsError` for what is not JSON.

    Celery's own variables are removed with a warning: they would override the settings.
    """
    for name in CELERY_VARIABLES:
        if os.environ.pop(name, None):
            logger.warning("%s is ignored; use the SAG_… variables", name)
    return Settings()


def unknown_variables(environment: dict[str, str] | None = None) -> list[str]:
    """Return the variables that begin with `SAG_` and are no setting: misspelt or outdated ones."""
    known = {f"SAG_{name.upper()}" for name in Settings.model_fields}
    present = os.environ if environment is None else environment
    return sorted(name for name in present if name.startswith("SAG_") and name not in known)
