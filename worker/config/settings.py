"""The worker's settings: environment variables `SAG_…`, frozen."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from api_contracts.errors import InvalidRequest
from api_contracts.names import MODEL_PATTERN, Keys
from api_contracts.parse import parse_request
from api_contracts.request import Limits
from worker.config.models import SHIPPED_MODEL, Dtype, ModelDefaults, ModelSpec
from worker.config.push_targets import (  # noqa: TC001  # pydantic reads them at run time
    RedisUrl,
    ReplyTarget,
    WebhookHost,
    WebhookSecret,
)


def _url_is_http(url: str | None) -> str | None:
    if url is not None and not re.match(r"https?://[^/\s]+", url):
        message = "must start with http:// or https:// and name a host"
        raise ValueError(message)
    if url is not None and "@" in url.split("/")[2]:
        message = "must hold no key: it is logged; use AWS_ACCESS_KEY_ID"
        raise ValueError(message)
    return url


HttpUrl = Annotated[str | None, AfterValidator(_url_is_http)]
Alias = Annotated[str, Field(pattern=MODEL_PATTERN)]
#: A path of plain segments in S3, or nothing.
Prefix = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*)?$")
]


class Settings(BaseSettings):
    """Everything that can be set. Field `x` is environment variable `SAG_X`."""

    model_config = SettingsConfigDict(
        env_prefix="SAG_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    broker_url: RedisUrl = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis that carries the tasks; a database of its own.",
    )
    result_url: RedisUrl | None = Field(
        default=None, description="Redis for Celery's results; the broker's unless set."
    )
    events_url: RedisUrl | None = Field(
        default=None, description="Redis for records and events; the broker's unless set."
    )
    namespace: str = Field(
        default="sag",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Prefix of the records' keys. Queues and Celery's own keys have none: give the "
        "service a database of its own.",
    )
    models: dict[Alias, ModelSpec] = Field(
        default_factory=lambda: {
            "default": ModelSpec(
                path=str(SHIPPED_MODEL),
                safety_checker=False,
                defaults=ModelDefaults(num_inference_steps=25, guidance_scale=3.0),
            )
        },
        min_length=1,
        description="JSON: alias to `path`, `dtype`, `safety_checker`, `defaults`, `lora`, "
        "`textual_inversion`, `vae_slicing`, `vae_tiling`.",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="`cpu`, `cuda`, `cuda:1`; `auto` is every GPU under `sag-worker run`, "
        "the first one under `celery`, the CPU where there is none.",
    )
    offload: Literal["model", "none", "sequential", "auto"] = Field(
        default="model", description="`model`, `none`, `sequential`, `auto`: see Models (GPU only)."
    )
    dtype: Dtype = Field(
        default="auto", description="Precision of the models whose own `dtype` is `auto`."
    )
    compile: bool = Field(
        default=False, description="Compile the UNet: minutes at the first task, faster steps."
    )
    slots: int = Field(
        default=16, ge=1, le=64, description="Tasks held at once; they share each UNet call."
    )
    max_batch_rows: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Rows of one UNet call; unset is measured. 1: a picture's calls are its own, "
        "and its bytes the same in any company.",
    )
    max_models: int = Field(
        default=1, ge=1, description="Models kept loaded; the one longest unused makes room."
    )
    s3_endpoint_url: HttpUrl = Field(default=None, description="Unset is AWS.")
    s3_public_endpoint_url: HttpUrl = Field(
        default=None, description="Endpoint in presigned URLs, where callers reach S3 by another."
    )
    s3_bucket: str = Field(default="sag", min_length=3, description="Bucket of all files.")
    s3_prefix: Prefix = Field(default="outputs", description="Folder of the pictures.")
    s3_input_prefix: Prefix = Field(
        default="inputs", description="Folder of the files that requests refer to."
    )
    s3_retry_s: float = Field(
        default=60,
        ge=0,
        le=86_400,
        description="Seconds that an upload keeps trying through an outage.",
    )
    presign_s: int = Field(
        default=3600, ge=0, le=604_800, description="Life of a presigned URL; 0 makes none."
    )
    max_attempts: int = Field(default=3, ge=1, description="Claims of a task before it fails.")
    lease_s: float = Field(
        default=15,
        ge=2,
        le=3600,
        description="Seconds until the tasks of a worker that says nothing any more go to another.",
    )
    checkpoint_every: int = Field(
        default=5,
        ge=0,
        description="Steps between two checkpoints, from which another worker goes on; 0 is none.",
    )
    step_timeout_s: float = Field(
        default=600,
        ge=1,
        le=86_400,
        description="Seconds that a step may take before the process gives its tasks back and "
        "ends; loading a model does not count.",
    )
    drain_timeout_s: float = Field(
        default=30, ge=0, le=86_400, description="Seconds that tasks may take to end after SIGTERM."
    )
    record_ttl_s: int = Field(
        default=86_400,
        ge=60,
        le=31_536_000,
        description="Seconds that record and events outlive a task and its pushes, and Celery's "
        "result the task.",
    )
    reply_to: tuple[ReplyTarget, ...] = Field(
        default=(),
        description="JSON: whom a request's `reply_to` may name, a list of `queue`, `task` and "
        "`broker_url` (this broker unless set).",
    )
    webhook_hosts: tuple[WebhookHost, ...] = Field(
        default=(),
        description="JSON: where a request's `webhook` may be, a list of `host`, `host:port` or "
        "`http://host:port`; an empty list allows none.",
    )
    webhook_secrets: tuple[WebhookSecret, ...] = Field(
        default=(),
        description="JSON: what webhooks are signed with, a list of `whsec_` and base64; each "
        "signs, so that receivers can change over.",
    )
    webhook_private_addresses: bool = Field(
        default=False, description="Let webhooks be at private addresses, this machine's too."
    )
    push_retry_s: float = Field(
        default=21_600,
        ge=0,
        le=31_536_000,
        description="Seconds that `reply_to` and `webhook` are tried.",
    )
    metrics_port: int | None = Field(
        default=None, ge=1, le=65_535, description="Port of Prometheus metrics; unset is none."
    )
    log_prompts: bool = Field(default=False, description="Write prompts into the log.")
    max_side_px: int = Field(default=1024, ge=64, description="Largest height or width.")
    max_steps: int = Field(default=150, ge=1, description="Largest `num_inference_steps`.")
    max_images: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Most images of one task, prompts times `num_images_per_prompt`.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="`text` or `json`, on standard error."
    )

    @model_validator(mode="after")
    def _defaults_hold(self) -> Self:
        """A default that every request would be refused for is a fault of the settings."""
        for alias, spec in self.models.items():
            given = {k: v for k, v in spec.defaults.model_dump().items() if v is not None}
            try:
                parse_request({"prompt": "x"} | given, self.limits)
            except InvalidRequest as error:
                message = f"the defaults of model {alias!r} are refused: {error}"
                raise ValueError(message) from None
        return self

    @model_validator(mode="after")
    def _webhooks_are_signed(self) -> Self:
        if self.webhook_hosts and not self.webhook_secrets:
            message = "SAG_WEBHOOK_HOSTS needs SAG_WEBHOOK_SECRETS: every webhook is signed"
            raise ValueError(message)
        return self

    @property
    def specs(self) -> dict[str, ModelSpec]:
        """The models, with the settings' own precision where theirs is `auto`."""
        return {
            alias: spec.model_copy(update={"dtype": self.dtype}) if spec.dtype == "auto" else spec
            for alias, spec in self.models.items()
        }

    @property
    def limits(self) -> Limits:
        """The request limits as the contracts know them."""
        return Limits(self.max_side_px, self.max_steps, self.max_images)

    @property
    def keys(self) -> Keys:
        """The Redis keys of this namespace."""
        return Keys(self.namespace)

    @property
    def events_redis_url(self) -> SecretStr:
        """The Redis URL of records and events."""
        return self.events_url or self.broker_url

    @property
    def result_redis_url(self) -> SecretStr:
        """The Redis URL of Celery's results."""
        return self.result_url or self.broker_url

    def shown(self) -> dict[str, Any]:
        """The settings for a log, with what is secret hidden."""
        return {
            f"SAG_{name.upper()}": value for name, value in self.model_dump(mode="json").items()
        }
