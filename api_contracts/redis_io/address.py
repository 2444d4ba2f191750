"""Reads a Redis URL once, for redis-py, kombu and Celery, which differ in what they accept.

kombu splits URLs at `;`, redis-py ignores a database that is no number and has no form for
Sentinel, and each fails in its own way for options of the other. Here a URL means the same to all
of them, or it is refused. `pools` makes connections of an address.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self
from urllib.parse import quote, unquote, urlsplit

from api_contracts.redis_io.url_options import SENTINEL_OPTIONS, parse_options

#: Ports of Redis and of its sentinels.
REDIS_PORT, SENTINEL_PORT = 6379, 26379
SENTINEL_FORM = "sentinel://USER:PASSWORD@HOST1:26379,HOST2:26379/0?master_name=NAME"
_SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix", "sentinel", "sentinels")
_SENTINEL, _TLS = ("sentinel", "sentinels"), ("rediss", "valkeys", "sentinels")
#: Celery's scheme for sockets, and its option for the database.
_CELERY_SOCKET, _CELERY_DATABASE = "redis+socket", "virtual_host"
#: Sentinel allows no other characters in the name of a primary.
_MASTER_NAME = re.compile(r"[A-Za-z0-9._-]+\Z")
_HINT = (
    "is no Redis URL; in user and password write / as %2F, @ as %40, : as %3A, # as %23, ? as %3F"
)


class _Parts(NamedTuple):
    """A URL, not decoded. urllib would refuse a list of hosts with an IPv6 address."""

    scheme: str
    login: str
    hosts: str
    path: str
    query: str


@dataclass(frozen=True)
class Sentinels:
    """The sentinels to ask for the primary, and how they are asked."""

    #: Host and port of each.
    hosts: tuple[tuple[str, int], ...]
    master_name: str
    #: Their own `username` and `password`, where they have some.
    login: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class RedisAddress:
    """A Redis server and database, and how to connect. Its repr and its JSON show no password."""

    #: What Celery and kombu are given and show. They connect by the other fields, see `transport`;
    #: the host is that of the server, the path of its socket, or the name of the primary.
    url: str = field(repr=False)
    #: `host` and `port`, or `path` of a socket; with sentinels neither, as they say where it is.
    place: dict[str, Any]
    db: int
    #: `username` and `password`, where the URL has them.
    login: dict[str, str] = field(repr=False)
    #: Timeouts in seconds and `client_name`, as redis-py and the options of kombu name them.
    options: dict[str, Any]
    #: redis-py's `ssl_…` arguments; empty without TLS.
    tls: dict[str, Any]
    sentinels: Sentinels | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a URL; raises ValueError, without what may be a password, for one not supported."""
        parts = _split(text)
        scheme, is_sentinel = parts.scheme, parts.scheme in _SENTINEL
        options = parse_options(parts.query, sentinel=is_sentinel, tls=scheme in _TLS)
        place, database = _place(parts), options.pop("db", None)
        if database is None:
            database = "0" if scheme == "unix" else parts.path.strip("/") or "0"
        if not re.fullmatch(r"\d{1,9}", database, re.ASCII):
            raise ValueError("must end with a database number, as /0")
        own = {name: options.pop(name) for name in SENTINEL_OPTIONS if name in options}
        sentinels = _sentinels(parts.hosts, own) if is_sentinel else None
        tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
        if scheme in _TLS:
            tls = {"ssl_cert_reqs": ssl.CERT_REQUIRED} | tls
        user, _, password = map(unquote, parts.login.partition(":"))
        login = {"username": user} if user else {}
        login |= {"password": password} if password else {}
        encoded = f"{quote(user, safe='')}:{quote(password, safe='')}@" if login else ""
        shown = quote(own["master_name"] if sentinels else place.get("path", ""), safe="")
        return cls(
            f"redis{'s' * bool(tls)}://{encoded}{shown or _shown(place)}/{int(database)}",
            {} if sentinels else place,
            int(database),
            login,
            {name: value for name, value in options.items() if name not in tls},
            tls,
            sentinels,
        )

    @property
    def target(self) -> dict[str, Any]:
        """redis-py's arguments for the server, user and database."""
        return {**self.place, "db": self.db, **self.login}

    def celery_tls(self, setting: str) -> dict[str, dict[str, Any]]:
        """Celery's `setting`, `broker_use_ssl` or `redis_backend_use_ssl`; empty without TLS.

        By default Celery verifies no certificate.
        """
        return {setting: dict(self.tls)} if self.tls else {}

    def __json__(self) -> str:
        """Where it is, for kombu's JSON encoder."""
        if self.sentinels is None:
            return str(self.place.get("path") or self.place)
        return f"{self.sentinels.master_name} of {self.sentinels.hosts}"


def _split(text: str) -> _Parts:
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if "cluster" in scheme:
        raise ValueError("names a Redis Cluster, which is not supported: use a Redis or Sentinel")
    if "sentinel" in scheme and scheme not in _SCHEMES:
        raise ValueError(f"is not the form for Sentinel, which is {SENTINEL_FORM}")
    if scheme == "socket":
        raise ValueError("is not the form for a socket, which is unix:///PATH?db=0")
    if not separator or scheme not in (*_SCHEMES, _CELERY_SOCKET):
        raise ValueError(
            f"is no Redis URL: it must start with {', '.join(f'{each}://' for each in _SCHEMES)}"
        )
    if re.search(r"[,;][a-z+]+://", rest):  # as Celery writes it, before @ and / are looked for
        raise ValueError(_list_error(scheme))
    front, _, query = rest.partition("?")
    place, slash, path = front.partition("/")
    login, at, hosts = place.rpartition("@")
    if scheme in _SENTINEL and "@" in login:  # a login for each sentinel, perhaps
        raise ValueError(f"must have one user and password, @ as %40 in them: {SENTINEL_FORM}")
    if "#" in rest or "@" in path + query:  # of a password, perhaps
        raise ValueError(_HINT)
    if scheme == _CELERY_SOCKET:
        query = re.sub(rf"(^|&){_CELERY_DATABASE}=", r"\1db=", query)
        scheme = "unix"
    return _Parts(scheme, login if at else "", hosts, slash + path, query)


def _list_error(scheme: str) -> str:
    what = "must have the sentinels in one list" if scheme in _SENTINEL else "must be one server"
    return f"{what}; lists are for Sentinel alone: {SENTINEL_FORM}"


def _place(parts: _Parts) -> dict[str, Any]:
    """The server's host and port, or its socket's path; nothing for sentinels."""
    if parts.scheme == "unix":
        if parts.hosts or len(parts.path) <= 1:
            raise ValueError("must name a socket by its whole path, as unix:///run/redis.sock?db=0")
        return {"path": unquote(parts.path)}
    if parts.scheme in _SENTINEL:
        return {}
    if re.search("[,;]", parts.hosts + parts.path):
        raise ValueError(_list_error(parts.scheme))
    host, port = _server(parts.hosts, REDIS_PORT)
    return {"host": host, "port": port}


def _shown(place: dict[str, Any]) -> str:
    host, port = place["host"], place["port"]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _server(text: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(_HINT) from None
    if port == 0:
        raise ValueError(_HINT)
    return unquote(host or "localhost"), port or default_port


def _sentinels(hosts: str, own: dict[str, Any]) -> Sentinels:
    name = own.get("master_name", "")
    if ";" in hosts or not all(hosts.split(",")):
        raise ValueError(_list_error("sentinel"))
    if not _MASTER_NAME.match(name):
        raise ValueError(f"needs the name of the primary, master_name: {SENTINEL_FORM}")
    return Sentinels(
        tuple(_server(each, SENTINEL_PORT) for each in hosts.split(",")),
        name,
        {key.removeprefix("sentinel_"): own[key] for key in SENTINEL_OPTIONS[1:] if own.get(key)},
    )
