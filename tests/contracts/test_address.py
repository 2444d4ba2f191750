"""A Redis URL means the same to redis-py, kombu and Celery, or is refused."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import Connection
from kombu.utils.json import dumps
from redis import SSLConnection
from redis.connection import parse_url

from api_contracts import AsyncGenerationClient, GenerationClient
from api_contracts.redis_io.address import SENTINEL_FORM, RedisAddress
from api_contracts.redis_io.celery_app import celery_app
from api_contracts.redis_io.connection import connect
from api_contracts.redis_io.pools import SENTINEL_TIMEOUT_S
from api_contracts.redis_io.url_options import NEVER_S, KeyPassword
from worker.app import create_app
from worker.config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from celery import Celery

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
#: URLs that are refused, and a part of the reason.
REFUSED = {
    "redis://h/x": "database number",
    "redis://h/1/2": "database number",
    "redis://h/0?db=": "database number",
    "redis://h/0?protocol=3": "unknown option 'protocol'",
    "redis://h/0?virtual_host=3": "unknown option 'virtual_host'",
    "redis://h/0?db=1&db=2": "twice 'db'",
    "redis://h/0?socket_timeout=soon": "seconds above 0",
    "redis://h/0?socket_timeout=-1": "seconds above 0",
    "redis://h/0?socket_timeout=0": "seconds above 0",
    "redis://h/0?health_check_interval=-1": "seconds above 0",
    "redis://h/0?socket_timeout=inf": "seconds above 0",
    "redis://h/0?ssl_cert_reqs=required": "needs rediss://",
    "redis://h/0?ssl_password=x": "needs rediss://",
    "rediss://h/0?ssl_cert_reqs=CERT_SOME": "one of ",
    "rediss://h/0?ssl_check_hostname=maybe": "one of ",
    "redis://h:1,g:2/0": "one server",
    "redis://h:1/0;redis://g:2/0": "one server",
    "redis://h;g/0": "one server",
    "redis://:a;b@h,g/0?client_name=x": "one server",
    "redis://h:0/0": "Redis URL",
    "redis://h:99999/0": "Redis URL",
    "redis://:p/w@h:1/0": "Redis URL",
    "redis://:p?w@h:1/0": "Redis URL",
    "redis://:p#w@h:1/0": "Redis URL",
    "unix://nowhere/none.sock": "whole path",
    "unix://": "whole path",
    "unix:///s?db=x": "database number",
    "unix:///s?ssl_ca_certs=x": "needs rediss://",
    "unix:///s?virtual_host=1": "unknown option 'virtual_host'",
    "redis+socket:///s?virtual_host=1&db=1": "twice 'db'",
    "socket:///s": "unix:///PATH",
    "valkey://h/0?ssl_ca_certs=x": "needs rediss://",
    "redis://h/0?master_name=m": "needs sentinel://",
    "sentinel://h:1/0": "name of the primary",
    "sentinel://h:1/0?master_name=": "name of the primary",
    "sentinel://h:1/0?master_name=a%20b": "name of the primary",
    "sentinel://h:1,,g:1/0?master_name=m": "one list",
    "sentinel://?master_name=m": "one list",
    "sentinel://h:1;g:2/0?master_name=m": "one list",
    "sentinel://:p@h:1;sentinel://:p@g:2/0?master_name=m": "one list",
    "sentinel://h:1;sentinel://g:2": "one list",
    "sentinel://h:0/0?master_name=m": "Redis URL",
    "sentinel://u:pw@h:1,u:pw@g:2/0?master_name=m": "one user and password",
    "sentinel://u:p@w@h:1/0?master_name=m": "@ as %40",
    "sentinel://h/x?master_name=m": "database number",
    "sentinel://h/0?master_name=m&ssl_ca_certs=x": "or sentinels://",
    "redis+sentinel://h:1,g:2/m/0": "sentinel://USER",
    "redis-sentinel://h:1/0#m": "sentinel://USER",
    "redis+cluster://h/0": "Redis Cluster, which is not supported",
    "rediss+cluster://h/0": "Redis Cluster, which is not supported",
    "redis-cluster://h,g": "Redis Cluster, which is not supported",
    "valkey+cluster://h": "Redis Cluster, which is not supported",
    "": "must start with redis://",
    "redis:0": "must start with redis://",
    "redis:/3": "must start with redis://",
    "rediss:h:1/0": "must start with redis://",
}
TLS = {
    "valkeys://h/0": {"ssl_cert_reqs": ssl.CERT_REQUIRED},
    "rediss://h/0": {"ssl_cert_reqs": ssl.CERT_REQUIRED},
    "rediss://h/0?ssl_cert_reqs=CERT_REQUIRED": {"ssl_cert_reqs": ssl.CERT_REQUIRED},
    "rediss://h/0?ssl_cert_reqs=none": {"ssl_cert_reqs": ssl.CERT_NONE},
    "rediss://h/0?ssl_ca_certs=%2Fa%20b&ssl_check_hostname=False": {
        "ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/a b", "ssl_check_hostname": False,
    },
    "rediss://h/0?ssl_keyfile=k&ssl_password=a%26b": {
        "ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_keyfile": "k", "ssl_password": KeyPassword("a&b"),
    },
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


@pytest.mark.parametrize(("url", "wanted"), TLS.items())
def test_all_libraries_verify_alike(url: str, wanted: dict[str, Any]) -> None:
    """redis-py, kombu and the backend take the same options of TLS, and verify certificates."""
    address = RedisAddress.parse(url)
    tls = address.celery_tls("redis_backend_use_ssl")
    app: Celery = celery_app("x", url, result_backend=address.url, **tls)
    assert app.connection_for_write().ssl == wanted
    for kwargs in (connect(url).connection_pool.connection_kwargs, app.backend.connparams):
        assert {name: kwargs[name] for name in wanted} == wanted


def test_the_password_of_a_key_opens_it_and_is_not_shown(tmp_path: Path) -> None:
    """The password of a key opens it, and is in no log, `inspect stats` or `inspect conf`."""
    issued = trustme.CA().issue_cert("client.test")
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    (files := tmp_path / "client.pem").write_bytes(
        key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame")
        )
        + issued.cert_chain_pems[0].bytes()
    )
    address = RedisAddress.parse("rediss://h/0?ssl_password=open%20sesame")
    context = ssl.create_default_context()
    context.load_cert_chain(files, password=address.tls["ssl_password"])
    wrong = RedisAddress.parse("rediss://h/0?ssl_password=x").tls["ssl_password"]
    with pytest.raises(ssl.SSLError):
        context.load_cert_chain(files, password=wrong)
    app = celery_app("x", "rediss://h/0?ssl_password=open%20sesame")
    shown = repr(address) + dumps(app.connection_for_read().info()) + app.conf.humanize()
    assert "sesame" not in shown


SOCKETS = {
    "unix:///run/redis.sock": ("/run/redis.sock", 0, {}),
    "unix:///run/a%20b?db=3": ("/run/a b", 3, {}),
    "unix://me:p%2Fw@/s?db=1": ("/s", 1, {"username": "me", "password": "p/w"}),
    "redis+socket:///s?virtual_host=2": ("/s", 2, {}),
    "redis+socket://:p@/s": ("/s", 0, {"password": "p"}),
}
SENTINELS: dict[str, tuple[Any, ...]] = {
    "sentinel://h?master_name=m": ((("h", 26379),), {}, {}, 0),
    "sentinel://me:p%40w@h:1,g,[::1]:2/3?master_name=m.a-b_1": (
        (("h", 1), ("g", 26379), ("::1", 2)), {"username": "me", "password": "p@w"}, {}, 3,
    ),
    "sentinel://h,[::1]?master_name=m&sentinel_username=s&sentinel_password=q%2F&db=2": (
        (("h", 26379), ("::1", 26379)), {}, {"username": "s", "password": "q/"}, 2,
    ),
}  # fmt: skip


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


@pytest.mark.parametrize(("url", "reason"), REFUSED.items())
@pytest.mark.parametrize(
    "read",
    [
        GenerationClient,
        AsyncGenerationClient,
        lambda url: GenerationClient("redis://h/0", events_url=url or "x"),
        lambda url: Settings(broker_url=url),
    ],
    ids=["client", "asyncio", "events", "settings"],
)
def test_another_url_is_refused_at_once(
    read: Callable[[str], object], url: str, reason: str
) -> None:
    """Both clients and the settings refuse any other URL at once, with the reason."""
    with pytest.raises(ValueError, match=reason):
        read(url)


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
