"""Each setting is read from its variable and validated."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from api_contracts import Limits
from api_contracts.names import Keys
from worker.config.environment import unknown_variables
from worker.config.settings import Settings

SPEC = {
    "path": "stabilityai/sd-turbo", "dtype": "float16", "safety_checker": True,
    "defaults": {"guidance_scale": 3.0, "num_inference_steps": 4, "scheduler": "ddim"},
}  # fmt: skip
#: Every field: what its variable may say, and what that means.
GOOD: dict[str, tuple[str, Any]] = {
    "broker_url": ("redis://h:1/2", "redis://h:1/2"),
    "result_url": ("rediss://h:1/2", "rediss://h:1/2"),
    "events_url": ("redis://h:1/3", "redis://h:1/3"),
    "namespace": ("ns-1.x_Y", "ns-1.x_Y"),
    "models": (json.dumps({"default": SPEC}), {"default": SPEC}),
    "device": ("cuda:1", "cuda:1"),
    "offload": ("sequential", "sequential"),
    "dtype": ("bfloat16", "bfloat16"),
    "compile": ("true", True),
    "slots": ("64", 64),
    "reserved_slots": ("0", 0),
    "max_batch_rows": ("1", 1),
    "max_models": ("3", 3),
    "max_adapters": ("3", 3),
    "s3_endpoint_url": ("http://h:9000", "http://h:9000"),
    "s3_public_endpoint_url": ("https://s3.example", "https://s3.example"),
    "s3_bucket": ("pictures", "pictures"),
    "s3_prefix": ("a/b.c", "a/b.c"),
    "s3_input_prefix": ("", ""),
    "s3_retry_s": ("0.5", 0.5),
    "presign_s": ("0", 0),
    "max_attempts": ("1", 1),
    "lease_s": ("2", 2.0),
    "checkpoint_every": ("0", 0),
    "step_timeout_s": ("1", 1.0),
    "drain_timeout_s": ("0", 0.0),
    "record_ttl_s": ("60", 60),
    "reply_to": ("[]", ()),  # more of these in tests/push
    "webhook_hosts": ("[]", ()),
    "webhook_secrets": ("[]", ()),
    "webhook_private_addresses": ("true", True),
    "push_retry_s": ("0", 0.0),
    "metrics_port": ("9100", 9100),
    "log_prompts": ("true", True),
    "s3_conditional_writes": ("false", False),
    "s3_checksums": ("false", False),
    "load_timeout_s": ("60", 60.0),
    "exit_timeout_s": ("1", 1.0),
    "max_side_px": ("64", 64),
    "max_steps": ("25", 25),
    "max_images": ("64", 64),
    "log_format": ("json", "json"),
}
BAD: list[tuple[str, str]] = [
    ("broker_url", "amqp://h"), ("broker_url", ""), ("result_url", "http://h"),
    ("events_url", "h:6379"), ("namespace", ""), ("namespace", "a:b"), ("namespace", "{a}"),
    ("models", "{}"), ("models", '{"a/b": {"path": "x"}}'), ("models", '{"a": {}}'),
    ("models", '{"a": {"path": ""}}'), ("models", '{"a": {"path": "x", "dytpe": "auto"}}'),
    ("models", '{"a": {"path": "x", "defaults": {"guidance": 1}}}'), ("device", "gpu"),
    ("device", "cuda:"), ("device", "cuda:0\n"), ("offload", "all"), ("slots", "0"),
    ("dtype", "int8"), ("compile", "perhaps"), ("max_batch_rows", "0"), ("max_models", "0"),
    ("slots", "65"), ("slots", "many"), ("reserved_slots", "-1"), ("reserved_slots", "17"),
    ("s3_bucket", ""), ("s3_prefix", "/a"),
    ("s3_prefix", "a/"), ("s3_prefix", "../a"), ("s3_input_prefix", "a//b"),
    ("s3_retry_s", "-1"), ("presign_s", "604801"), ("max_attempts", "0"),
    ("lease_s", "1.9"), ("lease_s", "3601"), ("checkpoint_every", "-1"),
    ("step_timeout_s", "0.5"), ("step_timeout_s", "inf"), ("metrics_port", "0"),
    ("push_retry_s", "-1"), ("push_retry_s", "inf"), ("webhook_private_addresses", "perhaps"),
    ("webhook_hosts", '["a/b"]'), ("reply_to", '["shop"]'), ("webhook_secrets", '["secret"]'),
    ("metrics_port", "65536"), ("log_prompts", "perhaps"),
    ("drain_timeout_s", "-1"), ("record_ttl_s", "59"),
    ("max_side_px", "63"), ("max_steps", "0"), ("max_images", "0"), ("max_images", "65"),
    ("log_format", "xml"), ("broker_url", "redis://:pass/word@h:6379/0"),
    ("s3_endpoint_url", "127.0.0.1:8333"), ("s3_endpoint_url", ""),
    ("s3_public_endpoint_url", "s3.example"), ("drain_timeout_s", "inf"),
    ("load_timeout_s", "0"), ("exit_timeout_s", "0.5"), ("s3_checksums", "perhaps"),
    ("s3_retry_s", "1e300"), ("record_ttl_s", "99999999999"),
]  # fmt: skip


def plain(value: Any) -> Any:
    """A setting as JSON, secrets revealed."""
    if hasattr(value, "get_secret_value"):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {key: each.model_dump(exclude_unset=True) for key, each in value.items()}
    return value


def test_every_field_is_tried_here() -> None:
    """Every setting is in `GOOD`."""
    assert set(GOOD) == set(Settings.model_fields)


@pytest.mark.parametrize("name", GOOD)
def test_each_is_read_from_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Field `x` is read from `SAG_X`."""
    text, expected = GOOD[name]
    monkeypatch.setenv(f"SAG_{name.upper()}", text)
    assert plain(getattr(Settings(), name)) == expected


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_bad_value_is_named(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid value is refused, and the message names the setting."""
    monkeypatch.setenv(f"SAG_{name.upper()}", text)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert {str(error["loc"][0]) for error in caught.value.errors()} == {name}


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("SAG_MAX_STEPS", "20", "num_inference_steps: is 25"),
        ("SAG_MODELS", '{"a": {"path": "x", "defaults": {"scheduler": "Euler A"}}}', "scheduler"),
        ("SAG_MODELS", '{"a": {"path": "x", "defaults": {"height": 4096}}}', "height: is 4096"),
    ],
)
def test_invalid_defaults_of_a_model_are_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, says: str
) -> None:
    """A model's default beyond a limit would have every request refused."""
    monkeypatch.setenv(variable, text)
    with pytest.raises(ValidationError, match=says):
        Settings()


@pytest.mark.parametrize("changes", [{"compile": True}, {"offload": "sequential"}])
def test_adapters_are_refused_where_they_do_not_work(changes: dict[str, Any]) -> None:
    """Settings with which a loaded model can't get other layers name the model and what to do."""
    models = {"a": {"path": "p", "adapters": {"ink": {"path": "i"}}}}
    assert Settings(models=models).models["a"].adapters["ink"].scale == 1.0
    with pytest.raises(ValidationError, match="adapters of model 'a'"):
        Settings(models=models, **changes)
    wrong: list[Any] = [{"a.b": {"path": "i"}}, {"ink": {"path": "i", "scale": 11}}, {"ink": {}}]
    for bad in wrong:
        with pytest.raises(ValidationError, match="adapters"):
            Settings(models={"a": {"path": "p", "adapters": bad}})


def test_models_that_are_not_json_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error about broken JSON has the setting's name."""
    monkeypatch.setenv("SAG_MODELS", "{")
    with pytest.raises(SettingsError, match="models"):
        Settings()


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One error names every variable that is wrong."""
    for name in ("SLOTS", "MAX_STEPS", "DEVICE"):
        monkeypatch.setenv(f"SAG_{name}", "wrong")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert {error["loc"][0] for error in caught.value.errors()} == {"slots", "max_steps", "device"}


def test_urls_default_to_the_broker() -> None:
    """Events and results are in the broker's Redis unless set."""
    settings = Settings(broker_url="redis://a")
    assert (
        settings.events_redis_url.get_secret_value()
        == settings.result_redis_url.get_secret_value()
        == "redis://a"
    )
    settings = Settings(broker_url="redis://a", events_url="redis://b", result_url="redis://c")
    assert settings.events_redis_url.get_secret_value() == "redis://b"
    assert settings.result_redis_url.get_secret_value() == "redis://c"


def test_settings_are_immutable() -> None:
    """Assigning to a setting is refused."""
    settings = Settings(max_side_px=128, max_steps=30, max_images=3, namespace="n")
    with pytest.raises(ValidationError):
        settings.slots = 3  # type: ignore[misc]  # the law is that it fails
    assert settings.limits == Limits(128, 30, 3)
    assert settings.keys == Keys("n")


def test_unknown_variables_are_listed() -> None:
    """A misspelt `SAG_` variable is listed; other variables are not."""
    given = {"SAG_SLOT": "1", "SAG_SLOTS": "1", "SAG_MODEL": "x", "sag_slots": "1", "PATH": ""}
    assert unknown_variables(given) == ["SAG_MODEL", "SAG_SLOT"]
    assert unknown_variables({}) == []
