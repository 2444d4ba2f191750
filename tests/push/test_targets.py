"""Targets of pushes in settings and requests, and the errors for those not allowed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from api_contracts import InvalidRequest
from api_contracts.parse import parse_request
from worker.config.settings import Settings
from worker.errors import BadRequestError
from worker.execution.resolved_request import ResolvedRequest

SECRET = "whsec_" + "c2Vj" * 8
HOSTS = ["hooks.example.com", "other.example.com:8443", "http://10.0.0.7:8000"]
ALLOWED: dict[str, Any] = {
    "reply_to": [{"queue": "shop", "task": "shop.done"}],
    "webhook_hosts": HOSTS,
    "webhook_secrets": [SECRET],
}


def faults(settings: Settings, **wanted: Any) -> dict[str, str]:
    """The limits that a request breaks, by field."""
    request = parse_request({"prompt": "x", **wanted})
    try:
        ResolvedRequest.of(request, "t", settings)
    except BadRequestError as error:
        return {each["where"]: each["limit"] for each in error.details["faults"]}
    return {}


@pytest.mark.parametrize(
    "wanted",
    [
        {"reply_to": {"queue": "shop", "task": "shop.done"}},
        *[
            {"webhook": url}
            for url in (
                "https://hooks.example.com", "https://hooks.example.com:443/a?b=c",
                "https://HOOKS.example.com./x", "https://other.example.com:8443/",
                "http://10.0.0.7:8000/x",
            )
        ],
    ],
)  # fmt: skip
def test_targets_of_the_settings_are_allowed(wanted: dict[str, Any]) -> None:
    """A host is allowed in any spelling, with the port and scheme of the settings."""
    assert faults(Settings(**ALLOWED), **wanted) == {}


@pytest.mark.parametrize(
    ("wanted", "where"),
    [
        ({"reply_to": {"queue": "shop", "task": "os.system"}}, "reply_to"),
        ({"reply_to": {"queue": "other", "task": "shop.done"}}, "reply_to"),
        *[
            ({"webhook": url}, "webhook")
            for url in (
                "http://hooks.example.com/", "https://hooks.example.com:8443/",
                "https://other.example.com/", "https://example.com/", "http://10.0.0.7/",
                "https://x.hooks.example.com/", "https://hooks.example.com.evil.com/",
            )
        ],
    ],
)  # fmt: skip
def test_other_targets_are_refused(wanted: dict[str, Any], where: str) -> None:
    """Other targets are refused, and the error lists those that are allowed."""
    assert list(faults(Settings(**ALLOWED), **wanted)) == [where]
    assert faults(Settings(), **wanted)[where].endswith(": none")


@pytest.mark.parametrize(
    "wanted",
    [
        *[
            {"webhook": url}
            for url in (
                "ftp://hooks.example.com", "https://user:secret@hooks.example.com/", "//x", "x",
                "https://hooks.example.com/#part", "https://", "https://a b/", "https://a/\n",
                "file:///etc/passwd", "https://a/" + "x" * 2000, "", 7,
            )
        ],
        {"reply_to": {"queue": "shop"}},
        {"reply_to": {"queue": "a b", "task": "x"}},
        {"reply_to": {"queue": "x\n", "task": "x"}},
        {"reply_to": {"queue": "x", "task": "x", "broker_url": "redis://elsewhere"}},
        {"reply_to": "shop"},
    ],
)  # fmt: skip
def test_invalid_targets_are_refused(wanted: dict[str, Any]) -> None:
    """Invalid targets are refused by the contract, with the field."""
    with pytest.raises(InvalidRequest) as caught:
        parse_request({"prompt": "x", **wanted})
    (where,) = {fault.where.split(".")[0] for fault in caught.value.faults}
    assert where in wanted
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("webhook_hosts", ["https://a/path"], "host"),
        ("webhook_hosts", ["a b"], "host"),
        ("webhook_hosts", ["ftp://a"], "host"),
        ("webhook_hosts", ["hooks.example.com", "a:99999"], "Port"),
        ("webhook_secrets", ["secret"], "whsec_"),
        ("webhook_secrets", ["whsec_" + "c2Vj"], "24 to 64 bytes"),
        ("webhook_secrets", ["c2Vj" * 8], "whsec_"),
        ("webhook_secrets", ["whsec_***"], "whsec_"),
        ("reply_to", [{"queue": "generate.default", "task": "x"}], "queues of this service"),
        ("reply_to", [{"queue": "x"}], "task"),
        ("reply_to", [{"queue": "x", "task": "y", "broker_url": "amqp://x"}], "redis://"),
    ],
)
def test_invalid_settings_are_refused(name: str, value: Any, words: str) -> None:
    """Invalid settings are refused with a reason, without showing the secret."""
    with pytest.raises(ValidationError) as caught:
        Settings(**{**ALLOWED, name: value})
    assert words in str(caught.value)
    assert "c2Vj" not in str(caught.value)


def test_every_webhook_is_signed() -> None:
    """Webhook hosts without a secret are refused at start."""
    with pytest.raises(ValidationError, match="SAG_WEBHOOK_SECRETS"):
        Settings(webhook_hosts=["hooks.example.com"])


def test_settings_come_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are read as JSON from the environment; logs show no secret or password."""
    for name, value in ALLOWED.items():
        monkeypatch.setenv(f"SAG_{name.upper()}", json.dumps(value))
    target = {"queue": "a", "task": "b", "broker_url": "redis://:password@127.0.0.1/3"}
    monkeypatch.setenv("SAG_REPLY_TO", json.dumps([target]))
    settings = Settings()
    assert settings.webhook_hosts == ("https://hooks.example.com", f"https://{HOSTS[1]}", HOSTS[2])
    assert "password" not in str(settings.shown())
    assert SECRET not in str(settings.shown())


def test_no_file_contains_the_targets() -> None:
    """Targets, which may contain a token, are not in manifest, result or text chunk."""
    wanted = {"webhook": "https://hooks.example.com/token", "reply_to": ALLOWED["reply_to"][0]}
    order = ResolvedRequest.of(parse_request({"prompt": "x", **wanted}), "t", Settings(**ALLOWED))
    assert "token" not in json.dumps([order.parameters, order.origin])
    assert not {"webhook", "reply_to"} & {*order.parameters, *order.origin}
    assert order.origin == {"prompt": "x"}
