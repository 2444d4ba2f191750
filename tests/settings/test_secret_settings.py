"""A password in a URL is shown nowhere."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from worker.config.settings import Settings

SECRET = "hunter2-of-redis"
URL = f"redis://:{SECRET}@h:6379/1"


def test_a_password_that_breaks_its_url_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unescaped slash makes part of a password look like a port; the message hides it."""
    monkeypatch.setenv("SAG_BROKER_URL", "redis://:s3cr/et@h:6379/0")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert "s3cr" not in str(caught.value)
    assert "%2F" in str(caught.value)


def test_secrets_stay_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password in a URL is in no log, repr or dump of the settings."""
    for name in ("BROKER", "RESULT", "EVENTS"):
        monkeypatch.setenv(f"SAG_{name}_URL", URL)
    settings = Settings()
    assert settings.broker_url.get_secret_value() == URL
    for text in (repr(settings), str(settings), str(settings.shown()), settings.model_dump_json()):
        assert SECRET not in text
    assert set(settings.shown()) == {f"SAG_{name.upper()}" for name in Settings.model_fields}
    assert json.dumps(settings.shown())


def test_a_refused_url_keeps_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message about a wrong URL hides its password."""
    monkeypatch.setenv("SAG_BROKER_URL", f"redis+sentinel://:{SECRET}@h:26379/0")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert "broker_url" in str(caught.value)
    assert SECRET not in str(caught.value)
