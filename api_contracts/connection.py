"""How Redis is reached: time limits for every call, certificates verified on `rediss://`."""

from __future__ import annotations

import ssl

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

#: What redis-py raises while Redis can't be reached.
REDIS_AWAY = (RedisConnectionError, RedisTimeoutError)
CONNECT_S, ANSWER_S = 5, 10


def connect(url: str) -> Redis:
    """A client whose calls end in seconds when Redis is away."""
    return Redis.from_url(
        url,
        socket_timeout=ANSWER_S,
        socket_connect_timeout=CONNECT_S,
        socket_keepalive=True,
        health_check_interval=10,
        protocol=2,
    )


def celery_tls(setting: str, url: str) -> dict[str, dict[str, ssl.VerifyMode]]:
    """Celery's `setting` that has it verify the server of a `rediss://` URL; by itself it doesn't.

    `setting` is `broker_use_ssl` or `redis_backend_use_ssl`. Empty for other URLs.
    """
    return {setting: {"ssl_cert_reqs": ssl.CERT_REQUIRED}} if url.startswith("rediss://") else {}
