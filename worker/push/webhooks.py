"""Posts events to callers' webhooks, signed by the Standard Webhooks specification.

Guards against server-side request forgery: only allowed hosts, no private addresses unless the
settings allow them, the connection goes to the address that was checked, redirects are not
followed, no proxy is used, and of the answer only the status is read.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
import socket
import ssl
import threading
import time
from contextlib import suppress
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

from api_contracts.request_types import MAX_URL_CHARS, URL_PATTERN
from worker.config.push_targets import is_allowed, key_of
from worker.errors import PushError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from urllib.parse import SplitResult

    from pydantic import SecretStr

#: Timeout of connecting, and of everything after it, in seconds. With some 20 s for resolving the
#: name, a try takes far less than `HOLD_S`, for which a push is held.
CONNECT_S, ANSWER_S = 5.0, 15.0
#: Most addresses of one host that are tried.
MAX_ADDRESSES = 3
#: HTTP status with which a webhook refuses all further deliveries.
GONE = 410
#: IPv6 networks whose last 32 bits are an IPv4 address: mapped, translated, compatible, NAT64.
_WITH_IPV4 = [
    ipaddress.ip_network(each)
    for each in ("::ffff:0:0/96", "::ffff:0:0:0/96", "::/96", "64:ff9b::/96")
]
#: Not public, though Python's `is_global` says so: local NAT64, site-local, 6to4 and its relays.
_NOT_PUBLIC = [
    ipaddress.ip_network(each)
    for each in ("64:ff9b:1::/48", "fec0::/10", "2002::/16", "192.88.99.0/24")
]


class Webhooks:
    """Posts events. Thread-safe; each post has a connection of its own."""

    def __init__(
        self, hosts: Sequence[str], secrets: Sequence[SecretStr], *, private_addresses: bool
    ) -> None:
        """Signs with each of `secrets`, so that a secret can be replaced."""
        self._hosts, self._private = hosts, private_addresses
        self._keys = [key_of(secret) for secret in secrets]
        self._tls = ssl.create_default_context()

    def post(self, url: str, message_id: str, body: bytes) -> None:
        """Post the event; raises `PushError` unless the answer is 2xx.

        `url` is not validated yet: the final event of a refused request is pushed, too.
        """
        if not re.match(URL_PATTERN, url) or len(url) > MAX_URL_CHARS:
            raise PushError("the URL is not valid", final=True)
        if not is_allowed(url, self._hosts):
            raise PushError("its host is not among SAG_WEBHOOK_HOSTS of this worker", final=True)
        target = urlsplit(url)
        headers = {
            "Host": target.netloc,
            "Content-Type": "application/json",
            "User-Agent": "sag-worker",
            **signed(message_id, int(time.time()), body, self._keys),
        }
        try:
            status = self._status(target, body, headers)
        except (HTTPError, HTTPException, OSError, ValueError) as error:  # ValueError: certificates
            raise PushError(f"no answer: {error!r}"[:300]) from error
        if not 200 <= status < 300:  # noqa: PLR2004  # HTTP success
            raise PushError(f"answered {status}", final=status == GONE)

    def _status(self, target: SplitResult, body: bytes, headers: dict[str, str]) -> int:
        """The status from the first address that accepts a connection."""
        *others, last = self._addresses(target)[:MAX_ADDRESSES]
        for address in others:
            with suppress(NewConnectionError, ConnectTimeoutError):
                return self._post(target, address, body, headers)
        return self._post(target, last, body, headers)

    def _post(self, target: SplitResult, address: str, body: bytes, headers: dict[str, str]) -> int:
        """Post to the address that was checked; the name is not resolved again (DNS rebinding)."""
        path = (target.path or "/") + (f"?{target.query}" if target.query else "")
        connection = HTTPConnection(address, target.port, timeout=CONNECT_S)
        if target.scheme == "https":
            connection = HTTPSConnection(
                address, target.port, timeout=CONNECT_S, ssl_context=self._tls,
                server_hostname=target.hostname, assert_hostname=target.hostname,
            )  # fmt: skip
        # The socket's own timeout is for each read, and an answer may take any number of reads.
        total_timeout = threading.Timer(ANSWER_S, lambda: _shut_down(connection))
        total_timeout.daemon = True
        try:
            connection.connect()
            total_timeout.start()
            connection.sock.settimeout(ANSWER_S)
            connection.request("POST", path, body, headers)
            return connection.getresponse().status  # the rest is not read
        finally:
            total_timeout.cancel()
            connection.close()

    def _addresses(self, target: SplitResult) -> list[str]:
        """The addresses of the host; raises `PushError` if one of them is private."""
        port = target.port or target.scheme
        found = socket.getaddrinfo(target.hostname, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        if not (self._private or all(map(is_public, addresses))):
            # The address itself is not reported: it would tell the caller about our network.
            raise PushError("its host has a private address (SAG_WEBHOOK_PRIVATE_ADDRESSES)")
        return addresses


def _shut_down(connection: HTTPConnection) -> None:
    """Make pending reads and writes fail."""
    with suppress(OSError, AttributeError):  # closed meanwhile
        connection.sock.shutdown(socket.SHUT_RDWR)


def signed(message_id: str, at: int, body: bytes, keys: Sequence[bytes]) -> dict[str, str]:
    """The headers of a message with one signature per key; `at` is Unix time in seconds."""
    text = f"{message_id}.{at}.".encode() + body
    macs = [hmac.digest(key, text, hashlib.sha256) for key in keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs),
    }


def is_public(address: str) -> bool:
    """Whether an address, and the IPv4 address inside it if any, is on the public internet."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if any(found in network for network in _WITH_IPV4):
        return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)))
    if any(found in network for network in _NOT_PUBLIC):
        return False
    return found.is_global and not found.is_multicast
