"""The compose file and the settings: what the one hands on, the other has."""

from __future__ import annotations

import re
from pathlib import Path

from worker.config.settings import Settings

COMPOSE = Path(__file__).resolve().parents[2] / "docker-compose.yml"


def test_compose_hands_every_setting_on() -> None:
    """A setting that the stack would drop in silence is a trap: each is set, or handed on."""
    named = set(re.findall(r"^ +(SAG_[A-Z0-9_]+):", COMPOSE.read_text(), re.MULTILINE))
    assert named == {f"SAG_{name.upper()}" for name in Settings.model_fields}
