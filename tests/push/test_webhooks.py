"""Webhooks: signed by the specification, and no way into the worker's own network."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.push.receiver import Receiver, receiver
from worker.errors import PushError
from worker.push import webhooks
from worker.push.webhooks import Webhooks, is_public

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

SECRET, OLD_SECRET = "whsec_" + "c2Vj" * 8, "whsec_" + "b2xk" * 8
BODY = b'{"type": "succeeded"}'


@pytest.fixture
def hook() -> Iterator[Receiver]:
    """A webhook receiver on this machine."""
    with receiver() as made:
        yield made


def poster(hosts: Sequence[str], *secrets: str, private: bool = True) -> Webhooks:
    """Webhooks with the settings given."""
    keys = [SecretStr(each) for each in secrets or (SECRET,)]
    return Webhooks(hosts, keys, private_addresses=private)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Resolve a name to given addresses; returns the list of names resolved since."""

    def means(name: str, *addresses: str) -> list[str]:
        real, names = socket.getaddrinfo, []

        def resolve(host: str, *args: Any, **more: Any) -> list[Any]:
            names.append(host)
            each = addresses if host == name else [host]
            return [found for one in each for found in real(one, *args, **more)]

        monkeypatch.setattr("socket.getaddrinfo", resolve)
        return names

    return means


def test_receivers_can_verify_the_signature(hook: Receiver) -> None:
    """The specification's library verifies messages by each of two secrets and by no other."""
    poster([hook.origin], OLD_SECRET, SECRET).post(f"{hook.origin}/ended?x=1", "id-1.7", BODY)
    (message,) = hook.wait(1)
    assert (message.path, message.body) == ("/ended?x=1", BODY)
    assert message.headers["Host"] == f"127.0.0.1:{hook.port}"
    assert message.headers["Content-Type"] == "application/json"
    assert message.headers["webhook-id"] == "id-1.7"
    for secret in (SECRET, OLD_SECRET):
        assert Webhook(secret).verify(message.body, message.headers) == {"type": "succeeded"}
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "bm8h" * 8).verify(message.body, message.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(message.body.replace(b"succ", b"fail"), message.headers)


def test_a_signature_expires(hook: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The specification's library refuses a message that is replayed an hour later."""
    monkeypatch.setattr("worker.push.webhooks.time.time", lambda real=time.time: real() - 3600)
    poster([hook.origin]).post(hook.origin, "id-1.7", BODY)
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(SECRET).verify(BODY, hook.wait(1)[0].headers)


def test_a_redirect_is_not_followed(hook: Receiver) -> None:
    """A redirect is a failure, as any answer that is not 2xx."""
    hook.answers = [302, 307, 404, 500]
    for status in list(hook.answers):
        with pytest.raises(PushError, match=str(status)) as caught:
            poster([hook.origin]).post(hook.origin, "id", BODY)
        assert not caught.value.final
    assert [message.path for message in hook.messages] == ["/"] * 4


def test_gone_is_final(hook: Receiver) -> None:
    """Status 410 is final."""
    hook.answers = [410]
    with pytest.raises(PushError) as caught:
        poster([hook.origin]).post(hook.origin, "id", BODY)
    assert caught.value.final


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_private_addresses_are_not_reached(hook: Receiver, name: str) -> None:
    """A private address is refused even on an allowed host, unless the settings allow it."""
    origin = f"http://{name}:{hook.port}"
    with pytest.raises(PushError, match="private address"):
        poster([origin], private=False).post(origin, "id", BODY)
    assert hook.messages == []
    poster([origin]).post(origin, "id", BODY)
    assert len(hook.wait(1)) == 1


def test_one_private_address_among_others_is_enough(asked: Callable[..., list[str]]) -> None:
    """A name with a public and a private address is refused."""
    asked("both.example", "8.8.8.8", "127.0.0.1")
    with pytest.raises(PushError, match="private address"):
        poster(["http://both.example"], private=False).post("http://both.example", "id", BODY)


def test_the_checked_address_is_the_one_connected_to(
    hook: Receiver, asked: Callable[..., list[str]]
) -> None:
    """A name is resolved once, so it can't change between check and connection."""
    names = asked("moves.example", "127.0.0.1")
    origin = f"http://moves.example:{hook.port}"
    poster([origin]).post(origin, "id", BODY)
    assert names.count("moves.example") == 1
    assert hook.wait(1)[0].headers["Host"] == f"moves.example:{hook.port}"


def test_the_next_address_is_tried(hook: Receiver, asked: Callable[..., list[str]]) -> None:
    """When the first address refuses the connection, the next one is used."""
    asked("two.example", "127.9.9.9", "127.0.0.1")
    origin = f"http://two.example:{hook.port}"
    poster([origin]).post(origin, "id", BODY)
    assert len(hook.wait(1)) == 1


@pytest.mark.parametrize(
    "url", ["http://other.example/", "http://127.0.0.1:1/", "https://127.0.0.1:99999/"]
)
def test_only_allowed_hosts_are_called(hook: Receiver, url: str) -> None:
    """Another name or port, or an invalid port, is refused without a connection."""
    with pytest.raises(PushError, match="SAG_WEBHOOK_HOSTS"):
        poster([hook.origin]).post(url, "id", BODY)


def test_refused_connections_and_silent_receivers_fail_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refused connection and a silent receiver end soon, as failures to retry."""
    monkeypatch.setattr(webhooks, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        origin = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(PushError, match="no answer") as caught:
            poster([origin]).post(origin, "id", BODY)
        assert not caught.value.final
    with pytest.raises(PushError, match="NewConnection"):
        poster([origin]).post(origin, "id", BODY)
    with pytest.raises(PushError, match="no answer"):
        poster(["https://no.invalid"]).post("https://no.invalid", "id", BODY)


def test_a_slow_answer_ends_at_the_total_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A receiver that sends a little now and then can't exceed the total timeout."""
    monkeypatch.setattr(webhooks, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            there, _ = server.accept()
            with there, suppress(OSError):
                while True:
                    there.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    threading.Event().wait(0.05)

        threading.Thread(target=drip, daemon=True).start()
        origin = f"http://127.0.0.1:{server.getsockname()[1]}"
        began_s = time.monotonic()
        with pytest.raises(PushError, match="no answer"):
            poster([origin]).post(origin, "id", BODY)
        assert time.monotonic() - began_s < 10


@pytest.mark.parametrize(
    "url", ["127.0.0.1/x", "ftp://127.0.0.1", "http://u:p@127.0.0.1/", "x" * 3000]
)
def test_an_invalid_url_is_not_called(hook: Receiver, url: str) -> None:
    """A URL that the contract refuses is given up at once: records are not trusted."""
    with pytest.raises(PushError) as caught:
        poster([hook.origin]).post(url, "id", BODY)
    assert caught.value.final
    assert hook.messages == []


def test_certificates_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates are verified by the URL's name; an unknown authority is refused."""
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    known = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(known)
    with receiver(tls) as hook:
        origin, other = (f"https://{name}:{hook.port}" for name in ("localhost", "127.0.0.1"))
        with pytest.raises(PushError, match="CERTIFICATE_VERIFY_FAILED"):
            poster([origin]).post(origin, "id", BODY)
        monkeypatch.setenv("SSL_CERT_FILE", str(known))
        with pytest.raises(PushError, match="CertificateError"):
            poster([other]).post(other, "id", BODY)
        assert hook.messages == []
        poster([origin]).post(origin, "id", BODY)
        assert len(hook.wait(1)) == 1


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        *[
            (each, False)
            for each in (
                "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
                "100.64.0.1", "0.0.0.0", "224.0.0.1", "239.1.1.1", "255.255.255.255", "::1", "::",
                "fe80::1%eth0", "fd00::1", "ff0e::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
                "64:ff9b::a00:1", "2002:7f00:1::", "64:ff9b:1::a00:1", "fec0::1", "::10.0.0.1",
                "::ffff:0:10.0.0.1", "192.88.99.1",
            )
        ],
    ],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    """Addresses that are or contain a private one are not public."""
    assert is_public(address) is public
