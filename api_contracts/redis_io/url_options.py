"""The options of a Redis URL, each with the one meaning that redis-py, kombu and Celery get."""

from __future__ import annotations

import math
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

#: Options that are numbers of seconds.
_SECONDS = ("socket_timeout", "socket_connect_timeout", "health_check_interval")
#: Options of TLS that are paths.
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
#: Options of Sentinel: the name of the primary, and the sentinels' own user and password.
SENTINEL_OPTIONS = ("master_name", "sentinel_username", "sentinel_password")
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


def parse_options(query: str, *, sentinel: bool, tls: bool) -> dict[str, Any]:
    """The options in a query; raises ValueError for one that is unknown, odd or out of place.

    `sentinel` and `tls` say whether the URL's scheme has them.
    """
    options: dict[str, Any] = {}
    known = (*OPTIONS, *SENTINEL_OPTIONS) if sentinel else OPTIONS
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in SENTINEL_OPTIONS and not sentinel:
            raise ValueError(f"has {name}, which needs sentinel:// or sentinels://")
        if name not in known or name in options:
            what = "has twice" if name in options else "has the unknown option"
            raise ValueError(f"{what} {name[:40]!r}; supported are {', '.join(known)}")
        options[name] = _value(name, value)
    if not tls and (lost := [name for name in options if name.startswith("ssl_")]):
        raise ValueError(f"has {', '.join(lost)}, which needs rediss:// or sentinels://")
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
