"""The worker's settings: environment variables `SAG_…`, immutable."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from api_contracts.errors import InvalidRequest
from api_contracts.names import MODEL_PATTERN, queue_name
from api_contracts.parse import parse_request
from api_contracts.request import Limits
from api_contracts.request_types import MAX_LORAS
from worker.config.models import Dtype, ModelSpec, shipped
from worker.config.push_targets import (  # noqa: TC001  # pydantic reads them at run time
    ReplyTarget,
    WebhookHost,
    WebhookSecret,
)
from worker.config.redis_settings import RedisSettings
from worker.config.s3_settings import S3Settings

Alias = Annotated[str, Field(pattern=MODEL_PATTERN)]
#: Settings for which the empty string is a value. An empty variable leaves others at their default,
#: with a warning; an empty URL is refused.
MAY_BE_EMPTY = frozenset({"s3_prefix", "s3_input_prefix"})


class Settings(S3Settings, RedisSettings):
    """All settings. Field `x` is environment variable `SAG_X`."""

    model_config = SettingsConfigDict(
        env_prefix="SAG_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    models: dict[Alias, ModelSpec] = Field(
        default_factory=lambda: {"default": shipped()},
        min_length=1,
        description="JSON: alias to `path`, `config`, `variant`, `dtype`, `safety_checker`, "
        "`defaults`, `lora`, `adapters`, `textual_inversion`, `sag_layer`, `null_class`, "
        "`vae_slicing`, `vae_tiling`.",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="`cpu`, `cuda`, `cuda:1` or `auto`: every GPU under `sag-worker run`, the "
        "first one under `celery`, the CPU where there is none.",
    )
    offload: Literal["model", "none", "swap", "sequential", "auto"] = Field(
        default="model",
        description="`model`, `none`, `swap`, `sequential` or `auto`: see Models. GPU only.",
    )
    dtype: Dtype = Field(
        default="auto", description="Precision of the models whose `dtype` is `auto`."
    )
    compile: bool = Field(
        default=False,
        description="Compile the UNet: minutes at the first task, then faster steps. Needs g++ on "
        "the CPU, a C compiler on a GPU.",
    )
    slots: int = Field(
        default=16,
        ge=1,
        le=64,
        description="Tasks that a process runs at once; they share each UNet call.",
    )
    reserved_slots: int = Field(
        default=2,
        ge=0,
        le=16,
        description="More slots, only for tasks of the priorities 0 to 2, so that one can start "
        "while all of `SAG_SLOTS` are taken.",
    )
    max_batch_rows: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Most rows of one UNet call. Default: measured. With 1 an image shares no "
        "call, and its bytes do not depend on other tasks.",
    )
    max_models: int = Field(
        default=1, ge=1, description="Models kept loaded; the least recently used one is unloaded."
    )
    max_adapters: int = Field(
        default=MAX_LORAS,
        ge=1,
        description="Most of a model's `adapters` that stay loaded, and most that one task "
        "may name; the least recently used one is unloaded.",
    )
    max_attempts: int = Field(default=3, ge=1, description="Attempts at a task before it fails.")
    lease_s: float = Field(
        default=15,
        ge=2,
        le=3600,
        description="Seconds without a heartbeat before a worker's tasks are reassigned.",
    )
    checkpoint_every: int = Field(
        default=5,
        ge=0,
        description="Steps between checkpoints, from which another worker resumes; 0 makes none.",
    )
    step_timeout_s: float = Field(
        default=600,
        ge=1,
        le=86_400,
        description="Seconds that a step may take before the process requeues its tasks and exits; "
        "loading a model does not count.",
    )
    load_timeout_s: float = Field(
        default=1800,
        ge=1,
        le=86_400,
        description="Seconds that the download of a model may take, and its loading, before its "
        "tasks are requeued.",
    )
    drain_timeout_s: float = Field(
        default=30,
        ge=0,
        le=86_400,
        description="Seconds that running tasks have to finish after SIGTERM.",
    )
    exit_timeout_s: float = Field(
        default=90,
        ge=1,
        le=86_400,
        description="Seconds after the drain in which a process may still store results and "
        "requeue tasks. Then it exits whatever hangs; leases return what it held.",
    )
    record_ttl_s: int = Field(
        default=86_400,
        ge=60,
        le=31_536_000,
        description="Seconds for which record and events are kept after a task and its pushes have "
        "ended, and Celery's result after the task.",
    )
    reply_to: tuple[ReplyTarget, ...] = Field(
        default=(),
        description="JSON: what a request's `reply_to` may name, a list of `queue`, `task` and "
        "`broker_url` (default: `SAG_BROKER_URL`).",
    )
    webhook_hosts: tuple[WebhookHost, ...] = Field(
        default=(),
        description="JSON: hosts that a request's `webhook` may name, a list of `host`, "
        "`host:port` or `http://host:port`; an empty list allows none.",
    )
    webhook_secrets: tuple[WebhookSecret, ...] = Field(
        default=(),
        description="JSON: secrets that sign webhooks, a list of `whsec_` and base64. Each one "
        "signs, so that receivers can switch from one to the next.",
    )
    webhook_private_addresses: bool = Field(
        default=False, description="Allow webhooks at private addresses, this machine's included."
    )
    push_retry_s: float = Field(
        default=21_600,
        ge=0,
        le=31_536_000,
        description="Seconds for which `reply_to` and `webhook` are retried.",
    )
    metrics_port: int | None = Field(
        default=None, ge=1, le=65_535, description="Port of Prometheus metrics. Default: none."
    )
    log_prompts: bool = Field(default=False, description="Write prompts to the log.")
    max_side_px: int = Field(default=1024, ge=64, description="Largest `height` and `width`.")
    max_steps: int = Field(default=150, ge=1, description="Largest `num_inference_steps`.")
    max_images: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Most images of one task: prompts times `num_images_per_prompt`.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Log format on standard error: `text` or `json`."
    )

    @model_validator(mode="after")
    def _check_defaults(self) -> Self:
        """Refuse defaults of a model with which every request would be refused."""
        for alias, spec in self.models.items():
            given = {k: v for k, v in spec.defaults.model_dump().items() if v is not None}
            try:
                parse_request({"prompt": "x"} | given, self.limits)
            except InvalidRequest as error:
                message = f"the defaults of model {alias!r} are refused: {error}"
                raise ValueError(message) from None
        return self

    @model_validator(mode="after")
    def _check_adapters(self) -> Self:
        """Refuse what adapters can't be combined with: they change the layers of a loaded model."""
        with_some = [alias for alias, spec in self.specs.items() if spec.adapters]
        for variable, is_set in {
            "SAG_COMPILE": self.compile,
            "SAG_OFFLOAD=sequential": self.offload == "sequential",
        }.items():
            if with_some and is_set:
                message = (
                    f"{variable} is not supported with the adapters of model {with_some[0]!r}:"
                    " load them with the model, as its lora"
                )
                raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _check_webhooks(self) -> Self:
        if self.webhook_hosts and not self.webhook_secrets:
            message = "SAG_WEBHOOK_HOSTS needs SAG_WEBHOOK_SECRETS: every webhook is signed"
            raise ValueError(message)
        return self

    @property
    def specs(self) -> dict[str, ModelSpec]:
        """The models, with `SAG_DTYPE` where their own `dtype` is `auto`."""
        return {
            alias: spec.model_copy(update={"dtype": self.dtype}) if spec.dtype == "auto" else spec
            for alias, spec in self.models.items()
        }

    @property
    def queues(self) -> list[str]:
        """The queues of the models, in their order."""
        return [queue_name(alias) for alias in self.models]

    @property
    def limits(self) -> Limits:
        """The limits of requests."""
        return Limits(self.max_side_px, self.max_steps, self.max_images)

    def shown(self) -> dict[str, Any]:
        """Return the settings by variable, secrets hidden, for the log."""
        return {
            f"SAG_{name.upper()}": value for name, value in self.model_dump(mode="json").items()
        }
