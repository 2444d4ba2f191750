"""Retries without long pauses."""

from __future__ import annotations

import pytest

from worker import s3_client


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry after milliseconds."""
    monkeypatch.setattr(s3_client, "MIN_PAUSE_S", 0.01)
    monkeypatch.setattr(s3_client, "MAX_PAUSE_S", 0.05)
