"""Retries without long pauses."""

from __future__ import annotations

import pytest

from worker import storage


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry after milliseconds."""
    monkeypatch.setattr(storage, "MIN_PAUSE_S", 0.01)
    monkeypatch.setattr(storage, "MAX_PAUSE_S", 0.05)
