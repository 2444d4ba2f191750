"""Signed posts to callers' webhooks, by the Standard Webhooks specification.

To allowed hosts alone, never to private addresses unless the settings allow it, and no redirect is
followed: a request can't make the worker speak to what only the worker can reach.
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

from api_contracts.request import MAX_URL_CHARS, URL_PATTERN
from worker.config.push_targets import is_allowed, key_of
from worker.errors import PushError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import SecretStr

#: Limits of connecting to an address, and of all that follows, in seconds: together with the
#: resolver's own some 20 s far below what a push is held for.
CONNECT_S, ANSWER_S = 5.0, 15.0
#: Addresses of one host that are tried.
MOST_ADDRESSES = 3
#: The answer of a webhook that is to be called no more.
GONE = 410
#: IPv6 networks whose last 32 bits are an IPv4 address: mapped, translated, compatible, NAT64.
_WITH_IPV4 = [
    ipaddress.ip_network(each)
    for each in ("::ffff:0:0/96", "::ffff:0:0:0/96", "::/96", "64:ff9b::/96")
]
#: What Python's `is_global` takes for public: local NAT64, site-local, and the relays of 6to4.
_NOT_PUBLIC = [
    ipaddress.ip_network(each)
    for each in ("64:ff9b:1::/48", "fec0::/10", "2002::/16", "192.88.99.0/24")
]


class Webhooks:
    """Posts events. Thread-safe; each post has a connection of its own."""

    def __init__(
        self, hosts: Sequence[str], secrets: Sequence[SecretStr], *, private_addresses: bool
    ) -> None:
        """Signs with every one of `secrets`, so that one can take another's place."""
        self._hosts, self._private = hosts, private_addresses
        self._keys = [key_of(secret) for secret in secrets]
        self._tls = ssl.create_default_context()

    def post(self, url: str, message_id: str, body: bytes) -> None:
        """Post the event; raises `PushError` unless the answer is 2xx."""
        if not re.match(URL_PATTERN, url) or len(url) > MAX_URL_CHARS:
            raise PushError("the request's own is refused", final=True)
        if not is_allowed(url, self._hosts):
            raise PushError("its host is not among SAG_WEBHOOK_HOSTS of this worker", final=True)
        headers = signed(message_id, int(time.time()), body, self._keys)
        headers |= {
            "Host": urlsplit(url).netloc,
            "Content-Type": "application/json",
            "User-Agent": "sag-worker",
        }
        try:
            status = self._answer(url, body, headers)
        except (HTTPError, HTTPException, OSError, ValueError) as error:  # of certificates, too
            raise PushError(f"no answer: {error!r}"[:300]) from error
        if not 200 <= status < 300:  # noqa: PLR2004  # HTTP's successes
            raise PushError(f"answered {status}", final=status == GONE)

    def _answer(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        """The status that the first address gives that can be connected to."""
        *others, last = self._addresses(url)[:MOST_ADDRESSES]
        for address in others:
            try:
                return self._ask(url, address, body, headers)
            except (NewConnectionError, ConnectTimeoutError):
                continue
        return self._ask(url, last, body, headers)

    def _ask(self, url: str, address: str, body: bytes, headers: dict[str, str]) -> int:
        """One post. To the address that was looked at, whatever the name means by now."""
        parts = urlsplit(url)
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        connection = HTTPConnection(address, parts.port, timeout=CONNECT_S)
        if parts.scheme == "https":
            connection = HTTPSConnection(
                address, parts.port, timeout=CONNECT_S, ssl_context=self._tls,
                server_hostname=parts.hostname, assert_hostname=parts.hostname,
            )  # fmt: skip
        # The socket's own limit is one for each piece of an answer, of which there may be many.
        end = threading.Timer(ANSWER_S, lambda: _cut(connection))
        end.daemon = True
        try:
            connection.connect()
            end.start()
            connection.sock.settimeout(ANSWER_S)
            connection.request("POST", path, body, headers)
            return connection.getresponse().status  # whatever else it says, nobody reads it
        finally:
            end.cancel()
            connection.close()

    def _addresses(self, url: str) -> list[str]:
        """Where the host is; raises `PushError` when that is nowhere, or not in the open."""
        parts = urlsplit(url)
        port = parts.port or parts.scheme
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        private = [each for each in addresses if not is_public(each)]
        if private and not self._private:
            # Which one is not for the caller to know: it says where the worker's network is.
            raise PushError("its host has a private address (SAG_WEBHOOK_PRIVATE_ADDRESSES)")
        return addresses


def _cut(connection: HTTPConnection) -> None:
    """End what is being sent or read."""
    with suppress(OSError, AttributeError):  # it has ended by itself
        connection.sock.shutdown(socket.SHUT_RDWR)


def signed(message_id: str, at: int, body: bytes, keys: Sequence[bytes]) -> dict[str, str]:
    """The headers of a message, with a signature by each key; `at` is Unix time in seconds."""
    text = f"{message_id}.{at}.".encode() + body
    macs = [hmac.digest(key, text, hashlib.sha256) for key in keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs),
    }


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet, also in what it stands for."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if any(found in network for network in _WITH_IPV4):
        return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)))
    if any(found in network for network in _NOT_PUBLIC):
        return False
    return found.is_global and not found.is_multicast
