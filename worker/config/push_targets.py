"""Where tasks may push their results, by the settings: Celery queues and hosts of webhooks."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from api_contracts.errors import FieldError
from api_contracts.names import queue_name
from api_contracts.redis_io.address import RedisAddress
from api_contracts.request_types import NAME_PATTERN, URL_PATTERN, ReplyTo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from api_contracts.request import GenerationRequest

#: Prefix of a webhook's secret, and its least and most bytes, as Standard Webhooks specifies.
SECRET_PREFIX, SECRET_BYTES = "whsec_", (24, 64)
_PORTS = {"http": 80, "https": 443}


def _check_redis_url(url: SecretStr) -> SecretStr:
    RedisAddress.parse(url.get_secret_value())
    return url


def _check_queue(queue: str) -> str:
    if queue.startswith(queue_name("")):
        message = f"must not begin with {queue_name('')}: those are the queues of this service"
        raise ValueError(message)
    return queue


def _to_origin(text: str) -> str:
    """Validate a host and return its origin; without a scheme it is https."""
    origin = text if "://" in text else f"https://{text}"
    if re.match(URL_PATTERN, origin):
        origin_of(origin)  # raises for an invalid port
    if not re.match(URL_PATTERN, origin) or re.search(r"[/?]", origin.split("://")[1]):
        message = (
            "must be a host, with :port unless it is the default and http:// unless it is https"
        )
        raise ValueError(message)
    return origin


def _check_secret(secret: SecretStr) -> SecretStr:
    key_of(secret)
    return secret


RedisUrl = Annotated[SecretStr, AfterValidator(_check_redis_url)]
WebhookHost = Annotated[str, AfterValidator(_to_origin)]
WebhookSecret = Annotated[SecretStr, AfterValidator(_check_secret)]


class ReplyTarget(BaseModel):
    """A task of another Celery application and its queue."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    queue: Annotated[str, Field(pattern=NAME_PATTERN), AfterValidator(_check_queue)]
    task: str = Field(pattern=NAME_PATTERN)
    #: Broker of that application; this worker's unless set.
    broker_url: RedisUrl | None = None

    @property
    def address(self) -> ReplyTo:
        """The target as a request names it."""
        return ReplyTo(queue=self.queue, task=self.task)


def key_of(secret: SecretStr) -> bytes:
    """Return the key in a webhook's secret; raises ValueError for an invalid secret."""
    text, (least, most) = secret.get_secret_value(), SECRET_BYTES
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not (text.startswith(SECRET_PREFIX) and least <= len(key) <= most):
        message = f"must be {SECRET_PREFIX} and {least} to {most} bytes in base64"
        raise ValueError(message)
    return key


def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL, normalized; raises ValueError for an invalid port."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    port = _PORTS[parts.scheme] if parts.port is None else parts.port
    return f"{parts.scheme}://{host}:{port}"


def is_allowed(url: str, hosts: Iterable[str]) -> bool:
    """Whether a webhook is on one of the hosts of the settings."""
    try:
        return origin_of(url) in {origin_of(each) for each in hosts}
    except ValueError:
        return False


def faults(
    request: GenerationRequest, targets: Iterable[ReplyTarget], hosts: Iterable[str]
) -> Iterator[FieldError]:
    """Yield the push targets of a request that the settings do not allow."""
    allowed = [each.address for each in targets]
    if request.reply_to is not None and request.reply_to not in allowed:
        what = f"queue {request.reply_to.queue} with task {request.reply_to.task} is not allowed"
        names = ", ".join(f"{each.queue} with {each.task}" for each in allowed)
        yield FieldError(where="reply_to", what=what, limit=f"SAG_REPLY_TO: {names or 'none'}")
    if request.webhook is not None and not is_allowed(request.webhook, hosts):
        what = f"{urlsplit(request.webhook).netloc} is not allowed"
        limit = f"SAG_WEBHOOK_HOSTS: {', '.join(hosts) or 'none'}"
        yield FieldError(where="webhook", what=what, limit=limit)
