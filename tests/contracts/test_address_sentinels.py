"""A URL of sentinels means the same to redis-py, kombu and Celery."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from kombu.utils.json import dumps
from redis import SSLConnection

from api_contracts import AsyncGenerationClient, GenerationClient
from api_contracts.redis_io.address import SENTINEL_FORM, RedisAddress
from api_contracts.redis_io.connection import connect
from api_contracts.redis_io.pools import SENTINEL_TIMEOUT_S
from worker.app import create_app
from worker.config.settings import Settings

SENTINELS: dict[str, tuple[Any, ...]] = {
    "sentinel://h?master_name=m": ((("h", 26379),), {}, {}, 0),
    "sentinel://me:p%40w@h:1,g,[::1]:2/3?master_name=m.a-b_1": (
        (("h", 1), ("g", 26379), ("::1", 2)), {"username": "me", "password": "p@w"}, {}, 3,
    ),
    "sentinel://h,[::1]?master_name=m&sentinel_username=s&sentinel_password=q%2F&db=2": (
        (("h", 26379), ("::1", 26379)), {}, {"username": "s", "password": "q/"}, 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("url", "wanted"), SENTINELS.items())
def test_all_libraries_take_sentinels_alike(url: str, wanted: tuple[Any, ...]) -> None:
    """Sentinels, their login, and the primary's name, login and database reach all libraries."""
    hosts, login, own, database = wanted
    address = RedisAddress.parse(url)
    assert address.sentinels is not None
    assert (address.sentinels.hosts, address.sentinels.login) == (hosts, own)
    sync, asynchronous = GenerationClient(url).redis, AsyncGenerationClient(url).redis
    app = create_app(Settings(broker_url=url, device="cpu"))
    pools: list[Any] = [each.connection_pool for each in (connect(url), sync, asynchronous)]
    pools.append(app.backend._get_pool(**app.backend.connparams))
    for pool in pools:
        assert pool.service_name == address.sentinels.master_name
        kwargs = pool.connection_kwargs
        assert {name: kwargs.get(name) for name in login} == login
        assert kwargs["db"] == database
        for sentinel, (host, port) in zip(pool.sentinel_manager.sentinels, hosts, strict=True):
            asked = sentinel.connection_pool.connection_kwargs
            assert (asked["host"], asked["port"]) == (host, port)
            assert {name: asked.get(name) for name in own} == own
            assert asked["socket_timeout"] <= SENTINEL_TIMEOUT_S
    assert "p@w" not in repr(address) + dumps(address)
    assert "q/" not in repr(address) + dumps(address) + app.conf.humanize()


def test_tls_is_for_the_sentinels_too() -> None:
    """With `sentinels://` Redis and its sentinels are verified by the same authority."""
    pool: Any = connect("sentinels://h?master_name=m&ssl_ca_certs=/ca").connection_pool
    (sentinel,) = pool.sentinel_manager.sentinels
    for kwargs in (pool.connection_kwargs, sentinel.connection_pool.connection_kwargs):
        assert (kwargs["ssl_cert_reqs"], kwargs["ssl_ca_certs"]) == (ssl.CERT_REQUIRED, "/ca")
    assert issubclass(pool.connection_class, SSLConnection)


def test_the_form_for_sentinels_that_errors_give_is_taken() -> None:
    """The form of a URL for sentinels that errors show can be parsed as it stands."""
    assert RedisAddress.parse(SENTINEL_FORM).sentinels is not None
