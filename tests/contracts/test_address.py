"""A Redis URL means the same to redis-py, kombu and Celery, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import Connection
from kombu.utils.json import dumps
from redis.connection import parse_url

from api_contracts import AsyncGenerationClient, GenerationClient
from api_contracts.redis_io.address import RedisAddress
from api_contracts.redis_io.celery_app import celery_app
from api_contracts.redis_io.connection import connect
from api_contracts.redis_io.url_options import NEVER_S
from worker.app import create_app
from worker.config.settings import Settings

#: URLs that are supported: host, port, database, user, password, timeouts.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "redis://h": ("h", 6379, 0, None, None, {}),
    "redis://h:1?db=3": ("h", 1, 3, None, None, {}),
    "redis://h/2?db=3": ("h", 6379, 3, None, None, {}),
    "redis://h/2/": ("h", 6379, 2, None, None, {}),
    "redis:///4": ("localhost", 6379, 4, None, None, {}),
    "redis://:a;b@h:1/0": ("h", 1, 0, None, "a;b", {}),
    "redis://:a%3Bb@h:1/0": ("h", 1, 0, None, "a;b", {}),
    "redis://me:p@ss:w%2Frd@h/0": ("h", 6379, 0, "me", "p@ss:w/rd", {}),
    "redis://[::1]:1/0": ("::1", 1, 0, None, None, {}),
    "redis://h/0?socket_timeout=5&socket_connect_timeout=0.5&client_name=a%20b": (
        "h", 6379, 0, None, None,
        {"socket_timeout": 5.0, "socket_connect_timeout": 0.5, "client_name": "a b"},
    ),
    "redis://h?health_check_interval=7": ("h", 6379, 0, None, None, {"health_check_interval": 7.0}),
    "redis://h?health_check_interval=0": (
        "h", 6379, 0, None, None, {"health_check_interval": NEVER_S},
    ),
    "redis://h/0?client_name=a,b;c": ("h", 6379, 0, None, None, {"client_name": "a,b;c"}),
    "valkey://me:p@h:1/2": ("h", 1, 2, "me", "p", {}),
    "REDIS://h/1": ("h", 6379, 1, None, None, {}),
}  # fmt: skip


@pytest.mark.parametrize(("url", "wanted"), SUPPORTED.items())
def test_all_libraries_connect_alike(url: str, wanted: tuple[Any, ...]) -> None:
    """The clients' and workers' connections, the broker's and the backend's have the same place."""
    host, port, database, user, password, timeouts = wanted
    place = {"host": host, "port": port, "db": database, "password": password} | timeouts
    place |= {"username": user} if user else {}
    address = RedisAddress.parse(url)
    app = celery_app("x", url, result_backend=address.url)
    broker = app.connection_for_write()
    assert (broker.hostname, broker.port or 6379, broker.virtual_host) == (
        host,
        port,
        str(database),
    )
    assert (broker.userid, broker.password) == (user, password)
    assert {name: broker.transport_options[name] for name in timeouts} == timeouts
    sync, asynchronous = GenerationClient(url).redis, AsyncGenerationClient(url).redis
    for found in (connect(url), sync, asynchronous):
        kwargs = found.connection_pool.connection_kwargs
        defaults = {"port": 6379, "password": None}
        assert {name: kwargs.get(name, defaults.get(name)) for name in place} == place
    backend = {name: app.backend.connparams.get(name) for name in place if name not in timeouts}
    assert backend == {name: value for name, value in place.items() if name not in timeouts}


SOCKETS = {
    "unix:///run/redis.sock": ("/run/redis.sock", 0, {}),
    "unix:///run/a%20b?db=3": ("/run/a b", 3, {}),
    "unix://me:p%2Fw@/s?db=1": ("/s", 1, {"username": "me", "password": "p/w"}),
    "redis+socket:///s?virtual_host=2": ("/s", 2, {}),
    "redis+socket://:p@/s": ("/s", 0, {"password": "p"}),
}


@pytest.mark.parametrize(("url", "wanted"), SOCKETS.items())
def test_all_libraries_take_a_socket_alike(url: str, wanted: tuple[Any, ...]) -> None:
    """Path, database, user and password reach clients, broker and backend."""
    path, database, login = wanted
    place = {"path": path, "db": database, **login}
    address = RedisAddress.parse(url)
    sync, asynchronous = GenerationClient(url).redis, AsyncGenerationClient(url).redis
    for found in (connect(url), sync, asynchronous):
        kwargs = found.connection_pool.connection_kwargs
        assert {name: kwargs.get(name) for name in place} == place
        assert "host" not in kwargs
    app = create_app(Settings(broker_url=url, device="cpu"))
    assert {name: app.backend.connparams.get(name) for name in place} == place
    broker = app.connection_for_read()
    assert broker.virtual_host == str(database)
    assert (broker.userid, broker.password) == (login.get("username"), login.get("password"))
    assert broker.transport_options["address"] == address
    assert "p/w" not in repr(address) + dumps(broker.info()["transport_options"])


@settings(max_examples=30)
@given(
    user=st.text(max_size=8), password=st.text(max_size=8), database=st.integers(0, 10**6),
)  # fmt: skip
def test_any_password_survives(user: str, password: str, database: int) -> None:
    """The URL without options is read by redis-py and by kombu as the original was meant."""
    from urllib.parse import quote

    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    address = RedisAddress.parse(f"redis://{login}host:7/{database}")
    kwargs, parts = parse_url(address.url), Connection(address.url)
    assert kwargs.get("username", "") == user
    assert kwargs.get("password", "") == password
    assert (parts.userid or "", parts.password or "", parts.virtual_host) == (
        user, password, str(database),
    )  # fmt: skip
