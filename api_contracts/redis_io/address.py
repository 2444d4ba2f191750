"""Reads a Redis URL once, for redis-py, kombu and Celery, which differ in what they accept.

kombu splits URLs at `;`, redis-py ignores a database that is no number, and each fails in its own
way for options of the other. Here an option is used by all of them, or the URL is refused.
"""

from __future__ import annotations

import math
import re
import ssl
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

#: Options that are numbers of seconds.
_SECONDS = ("socket_timeout", "socket_connect_timeout", "health_check_interval")
#: Options of `rediss://` that are paths.
_PATHS = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
#: Values of `ssl_cert_reqs`, as redis-py and as Celery's manual write them.
_CERT_REQS = {
    name: mode
    for mode in ssl.VerifyMode
    for name in (mode.name, mode.name.removeprefix("CERT_").lower())
}
_BOOLEANS = {"true": True, "false": False}
OPTIONS = (
    "db", "client_name", *_SECONDS, "ssl_cert_reqs", "ssl_check_hostname", *_PATHS, "ssl_password",
)  # fmt: skip
#: What `health_check_interval=0`, redis-py's "never", becomes: kombu's event loop would not pause.
NEVER_S = 1e9


@dataclass(frozen=True)
class KeyPassword:
    """The password of an encrypted key, which `ssl` calls; Celery's `inspect stats` hides it."""

    text: str = field(repr=False)

    def __call__(self) -> str:
        """The password."""
        return self.text

    def __json__(self) -> str:
        """Asterisks, for kombu's JSON encoder."""
        return "********"


@dataclass(frozen=True)
class RedisAddress:
    """A Redis server and database, and how to connect."""

    #: Scheme, user, password, host, port and database; no options.
    url: str
    #: Timeouts in seconds and `client_name`, as redis-py and the options of kombu name them.
    options: dict[str, Any]
    #: redis-py's `ssl_…` arguments; empty unless the scheme is `rediss`.
    tls: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a URL; raises ValueError, without what may be a password, for one not supported."""
        if not re.match(r"rediss?://", text, re.IGNORECASE):
            raise ValueError("is no Redis URL: it must start with redis:// or rediss://")
        if re.search("[,;]", text.partition("?")[0].rpartition("@")[2]):
            raise ValueError("must be one server: lists of servers are not supported")
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "localhost", parts.port
        except ValueError:
            raise ValueError(_HINT) from None
        if port == 0 or parts.fragment or "@" in parts.path + parts.query:  # of a password, perhaps
            raise ValueError(_HINT)
        options = _options(parts.query)
        database = options.pop("db", parts.path.strip("/") or "0")
        if not re.fullmatch(r"\d{1,9}", database, re.ASCII):
            raise ValueError("must end with a database number, as /0")
        tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
        if parts.scheme == "redis" and tls:
            raise ValueError(f"has {', '.join(tls)}, which needs rediss://")
        if parts.scheme == "rediss":
            tls = {"ssl_cert_reqs": ssl.CERT_REQUIRED} | tls
        place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
        return cls(
            f"{parts.scheme}://{_login(parts.netloc)}{place}/{int(database)}",
            {name: value for name, value in options.items() if name not in tls},
            tls,
        )

    def celery_tls(self, setting: str) -> dict[str, dict[str, Any]]:
        """Celery's `setting`, `broker_use_ssl` or `redis_backend_use_ssl`; empty without TLS.

        By default Celery verifies no certificate.
        """
        return {setting: dict(self.tls)} if self.tls else {}


_HINT = (
    "is no Redis URL; in user and password write / as %2F, @ as %40, : as %3A, # as %23, ? as %3F"
)


def _login(netloc: str) -> str:
    """User and password, percent-encoded, with the `@` behind them; empty without either."""
    login, found, _ = netloc.rpartition("@")
    user, colon, password = login.partition(":")
    encoded = colon.join(quote(unquote(each), safe="") for each in (user, password))
    return encoded + found


def _options(query: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in OPTIONS or name in options:
            what = "has twice" if name in options else "has the unknown option"
            raise ValueError(f"{what} {name[:40]!r}; supported are {', '.join(OPTIONS)}")
        options[name] = _value(name, value)
    return options


def _value(name: str, text: str) -> Any:  # noqa: ANN401  # of any type that redis-py takes
    choices: dict[str, Any] | None = None
    if name in _SECONDS:
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if seconds == 0 and name == "health_check_interval":
            return NEVER_S
        if not 0 < seconds < math.inf:
            raise ValueError(f"has {name}={text[:40]!r}, which must be seconds above 0")
        return seconds
    if name == "ssl_password":
        return KeyPassword(text)
    if name == "ssl_cert_reqs":
        choices = _CERT_REQS
    elif name == "ssl_check_hostname":
        choices, text = _BOOLEANS, text.lower()
    if choices is not None:
        if text not in choices:
            raise ValueError(f"has {name}={text[:40]!r}, which must be one of {', '.join(choices)}")
        return choices[text]
    return text
