"""The settings as this process's environment has them, and what in it means nothing here."""

from __future__ import annotations

import logging
import os

from worker.config.settings import Settings

logger = logging.getLogger(__name__)

#: What Celery prefers to how it is configured.
CELERYS_OWN = (
    "CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL",
    "CELERY_RESULT_BACKEND",
)  # fmt: skip


def read() -> Settings:
    """The settings in this process's environment; raises what pydantic raises.

    Celery's own variables are dropped with a warning: it would believe them, and not these.
    """
    for name in CELERYS_OWN:
        if os.environ.pop(name, None):
            logger.warning("%s is set and means nothing here; SAG_… variables do", name)
    return Settings()


def unknown_variables(environment: dict[str, str] | None = None) -> list[str]:
    """Variables that begin with `SAG_` and set nothing: a misspelling, or of another version."""
    known = {f"SAG_{name.upper()}" for name in Settings.model_fields}
    present = os.environ if environment is None else environment
    return sorted(name for name in present if name.startswith("SAG_") and name not in known)
