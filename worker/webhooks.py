"""Signed posts to callers' webhooks, by the Standard Webhooks specification.

To allowed hosts alone, never to private addresses unless the settings allow it, and no redirect is
followed: a request can't make the worker speak to what only the worker can reach.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import socket
import ssl
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from worker.errors import NotPushed
from worker.targets import is_allowed, key_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import SecretStr

#: Limits of one try, in seconds; far below what a push is held for.
CONNECT_S, ANSWER_S = 5.0, 15.0
#: Addresses of one host that are tried.
MOST_ADDRESSES = 3
#: The answer of a webhook that is to be called no more.
GONE = 410
#: IPv6 addresses that stand for IPv4 ones behind a translator (RFC 6052).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


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
        """Post the event; raises `NotPushed` unless the answer is 2xx."""
        if not is_allowed(url, self._hosts):
            raise NotPushed("its host is not among SAG_WEBHOOK_HOSTS of this worker")
        headers = signed(message_id, int(time.time()), body, self._keys)
        headers |= {
            "Host": urlsplit(url).netloc,
            "Content-Type": "application/json",
            "User-Agent": "sag-worker",
        }
        try:
            status = self._answer(url, body, headers)
        except (HTTPError, OSError) as error:
            raise NotPushed(f"no answer: {error!r}"[:300]) from error
        if not 200 <= status < 300:  # noqa: PLR2004  # HTTP's successes
            raise NotPushed(f"answered {status}", final=status == GONE)

    def _answer(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        """The status that the first address gives that can be connected to."""
        parts = urlsplit(url)
        target = urllib3.util.Url(path=parts.path or "/", query=parts.query or None).url
        *others, last = self._addresses(url)[:MOST_ADDRESSES]
        for address in others:
            try:
                return self._ask(url, address, target, body, headers)
            except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError):
                continue
        return self._ask(url, last, target, body, headers)

    def _ask(
        self, url: str, address: str, target: str, body: bytes, headers: dict[str, str]
    ) -> int:
        """One post. To the address that was looked at, whatever the name means by now."""
        parts = urlsplit(url)
        timeout = urllib3.Timeout(connect=CONNECT_S, read=ANSWER_S)
        if parts.scheme == "https":
            pool: urllib3.HTTPConnectionPool = urllib3.HTTPSConnectionPool(
                address, parts.port, timeout=timeout, retries=False, ssl_context=self._tls,
                server_hostname=parts.hostname, assert_hostname=parts.hostname,
            )  # fmt: skip
        else:
            pool = urllib3.HTTPConnectionPool(address, parts.port, timeout=timeout, retries=False)
        with pool:
            answer = pool.urlopen(
                "POST", target, body, headers, redirect=False, preload_content=False
            )
            answer.close()  # whatever it says, nobody reads it
            return answer.status

    def _addresses(self, url: str) -> list[str]:
        """Where the host is; raises `NotPushed` when that is nowhere, or not in the open."""
        parts = urlsplit(url)
        port = parts.port or parts.scheme
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        private = [each for each in addresses if not is_public(each)]
        if private and not self._private:
            # Which one is not for the caller to know: it says where the worker's network is.
            raise NotPushed("its host has a private address (SAG_WEBHOOK_PRIVATE_ADDRESSES)")
        return addresses


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
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast
