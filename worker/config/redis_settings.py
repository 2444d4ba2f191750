"""The settings that say which Redis is used, and for what."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from api_contracts.names import Keys
from worker.config.push_targets import RedisUrl  # noqa: TC001  # pydantic reads it at run time


class RedisSettings(BaseSettings):
    """Redis for queues, results and records."""

    broker_url: RedisUrl = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis for the queues, a database of its own: `redis://`, `rediss://`, "
        "`valkey://`, `unix://` or `sentinel://`, see Redis URLs.",
    )
    result_url: RedisUrl | None = Field(
        default=None, description="Redis for Celery's results. Default: `SAG_BROKER_URL`."
    )
    events_url: RedisUrl | None = Field(
        default=None, description="Redis for records and events. Default: `SAG_BROKER_URL`."
    )
    namespace: str = Field(
        default="sag",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Prefix of the keys of records and events. Queues and Celery's keys have no "
        "prefix: give the service a database of its own.",
    )

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

    @property
    def redis_urls(self) -> dict[str, SecretStr]:
        """The Redis URLs that are set, by variable; the broker's always."""
        urls = {"BROKER": self.broker_url, "EVENTS": self.events_url, "RESULT": self.result_url}
        return {f"SAG_{name}_URL": url for name, url in urls.items() if url is not None}
