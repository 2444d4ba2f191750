"""The authorities that a store's certificate is checked against."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest

from tests.hostile.tls import Authority
from tests.storage.stores import store
from worker import embedded, s3_client
from worker.doctor.servers import check_s3

if TYPE_CHECKING:
    from pathlib import Path

    from worker.config.settings import Settings

#: Variables that name trusted authorities.
AUTHORITIES = ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")


@pytest.mark.slow  # as above
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "AWS_CA_BUNDLE"])
def test_the_environment_names_the_authority(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """As for Redis and webhooks; without it `doctor` says what to set, not that keys are wrong."""
    for each in AUTHORITIES:  # of the machine that runs the tests
        monkeypatch.delenv(each, raising=False)
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.files(embedded.LOOPBACK))
    with store(settings.s3_endpoint_url or "", context=context) as url:
        there = settings.model_copy(update={"s3_endpoint_url": url})
        (found,) = check_s3(there)
        assert (found.ok, "SSL_CERT_FILE" in found.fix) == (False, True)
        monkeypatch.setenv(variable, str(authority.certificate))
        assert [each for each in check_s3(there) if not each.ok] == []


@pytest.mark.parametrize("endpoint_url", ["https://store.example", None])
@pytest.mark.parametrize(
    ("named", "trusted"),
    [
        ({"SSL_CERT_FILE": "openssl"}, "openssl"),
        ({"SSL_CERT_FILE": "openssl", "REQUESTS_CA_BUNDLE": "requests"}, "requests"),
        ({"SSL_CERT_FILE": "openssl", "AWS_CA_BUNDLE": "aws"}, "aws"),
        ({"SSL_CERT_FILE": "openssl", "AWS_CONFIG_FILE": "config"}, "of-config"),
        ({"REQUESTS_CA_BUNDLE": "requests", "AWS_CONFIG_FILE": "config"}, "of-config"),
        ({"SSL_CERT_FILE": ""}, None),
        ({}, None),
    ],
    ids=lambda each: "+".join(each) if isinstance(each, dict) else str(each),
)
def test_openssls_authority_is_for_private_stores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    endpoint_url: str | None,
    named: dict[str, str],
    trusted: str | None,
) -> None:
    """AWS itself is not known to a private authority; boto3's own variables and files come first.

    `True` are the authorities that boto3 brings along.
    """
    (tmp_path / "config").write_text("[default]\nca_bundle = of-config\nregion = us-east-1\n")
    monkeypatch.chdir(tmp_path)
    for each in (*AUTHORITIES, "AWS_CONFIG_FILE"):
        monkeypatch.delenv(each, raising=False)
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    client = s3_client.connect(endpoint_url, checksums=True)
    expected = None if trusted == "openssl" and endpoint_url is None else trusted
    assert client._endpoint.http_session._verify == (expected or True)
