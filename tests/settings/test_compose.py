"""The compose file passes every setting on."""

from __future__ import annotations

import re
from pathlib import Path

from worker.config.settings import Settings

COMPOSE = Path(__file__).resolve().parents[2] / "docker-compose.yml"


def test_compose_passes_every_setting_on() -> None:
    """Each setting is set or passed on; one that the stack dropped would have no effect."""
    named = set(re.findall(r"^ +(SAG_[A-Z0-9_]+):", COMPOSE.read_text(), re.MULTILINE))
    assert named == {f"SAG_{name.upper()}" for name in Settings.model_fields}
