"""Variables of other programs and of platforms in the environment change no setting."""

from __future__ import annotations

import os

import pytest

from worker.config.environment import CELERY_VARIABLES, UNHEARD_VARIABLES, cleaned
from worker.config.settings import MAY_BE_EMPTY, Settings

#: What Kubernetes puts into each pod of a namespace with a Service named `sag-metrics`.
SERVICE_LINKS = {
    "SAG_METRICS_SERVICE_HOST": "10.96.3.7", "SAG_METRICS_SERVICE_PORT": "9100",
    "SAG_METRICS_PORT": "tcp://10.96.3.7:9100", "SAG_METRICS_PORT_9100_TCP_PORT": "9100",
}  # fmt: skip


@pytest.mark.parametrize("name", CELERY_VARIABLES)
def test_what_celery_prefers_is_removed(name: str) -> None:
    """A variable that Celery prefers is removed, with a warning unless it is empty."""
    environment = {name: "redis://elsewhere/0"}
    assert list(cleaned(environment)) == [f"{name} is ignored; use the SAG_… variables"]
    assert environment == {}
    assert list(cleaned({name: ""})) == []


@pytest.mark.parametrize("name", UNHEARD_VARIABLES)
def test_what_celerys_command_line_reads_is_named(name: str) -> None:
    """A variable that Celery's command line reads is named, and stays for other programs."""
    environment = {name: "redis://elsewhere/0"}
    assert list(cleaned(environment)) == [f"{name} is ignored; use the SAG_… variables"]
    assert environment == {name: "redis://elsewhere/0"}


@pytest.mark.parametrize("value", ["tcp://10.96.3.7:9100", "udp://[::1]:53", "sctp://a:1"])
def test_a_service_link_is_no_port(value: str) -> None:
    """A service link is no port, and the warning names the variable and the mend."""
    environment = SERVICE_LINKS | {"SAG_METRICS_PORT": value}
    (warning,) = cleaned(environment)
    assert f"SAG_METRICS_PORT={value} is ignored" in warning
    assert "enableServiceLinks: false" in warning
    assert "SAG_METRICS_PORT" not in environment


def test_a_port_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but a service link reaches the validation of the settings."""
    environment = {"SAG_METRICS_PORT": "tcp"}
    assert list(cleaned(environment)) == []
    monkeypatch.setenv("SAG_METRICS_PORT", "tcp")
    with pytest.raises(ValueError, match="metrics_port"):
        Settings()


@pytest.mark.parametrize("field", Settings.model_fields)
def test_an_empty_variable_is_ignored_with_a_warning_or_refused(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty variable is ignored with a warning, or refused where it is a URL.

    A template may write it for the default. A prefix in S3 may be empty. The default of a URL is
    another server: that of a secret which was not filled in.
    """
    name = f"SAG_{field.upper()}"
    environment = {name: ""}
    is_kept = field in MAY_BE_EMPTY or field.endswith("_url")
    warning = f"{name} is empty: ignored, as if it were not set"
    assert list(cleaned(environment)) == ([] if is_kept else [warning])
    assert environment == ({name: ""} if is_kept else {})
    monkeypatch.setenv(name, "")
    if field in MAY_BE_EMPTY:
        assert getattr(Settings(), field) == ""
    elif is_kept:
        with pytest.raises(ValueError, match=f"(?s){field}.*must start with"):
            Settings()
    else:
        assert list(cleaned(os.environ)) == [warning]
        assert getattr(Settings(), field) == getattr(Settings.model_construct(), field)
