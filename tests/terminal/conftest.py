"""Pillow's warnings in each test anew."""

from __future__ import annotations

import pytest

from worker.cli import terminal_image


@pytest.fixture
def reset_warnings() -> None:
    """Pytest restores the warning filters after each test."""
    terminal_image._silence_pillow.cache_clear()
