"""`STUDIO_MODELS`: what is wrong with it is named, and ends the backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from examples.studio import models
from tests.studio.conftest import studio_at

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[]", "an object"),
        ("{", "Invalid JSON"),
        ("{}", "at least 1 item"),
        ('{"A": {}}', "A: "),
        ('{"a": {"names": []}}', "a: names: "),
        ('{"a": {"classes": -1}}', "greater than or equal to 0"),
        ('{"a": {"classes": [5]}}', "a: classes: "),
        ('{"a": {"adapters": ["../x"]}}', "a: adapters: 0: "),
        ('{"a": {"adapters": ["x", "x"]}}', "an adapter is there twice"),
        ('{"a": {"adapters": ["x"], "classes": 5}}', "takes no adapters"),
    ],
)
def test_wrong_settings_are_named(monkeypatch: pytest.MonkeyPatch, text: str, what: str) -> None:
    """The error has the variable's name, the place and what is wrong there."""
    monkeypatch.setenv(models.VARIABLE, text)
    with pytest.raises(ValueError, match=f"^{models.VARIABLE}: ") as raised:
        models.from_environment()
    assert what in str(raised.value)


def test_a_backend_with_wrong_settings_does_not_start(redis_url: str, tmp_path: Path) -> None:
    """Its log says which."""
    others = {models.VARIABLE: '{"a": 5}'}
    with (
        pytest.raises(RuntimeError, match=r"STUDIO_MODELS: a: "),
        studio_at(redis_url, "sag", tmp_path, others=others),
    ):
        pass
