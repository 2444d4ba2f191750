"""TLS in a Redis URL: the same for all libraries, and no password is shown."""

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
from kombu.utils.json import dumps

from api_contracts.redis_io.address import RedisAddress
from api_contracts.redis_io.celery_app import celery_app
from api_contracts.redis_io.connection import connect
from api_contracts.redis_io.url_options import KeyPassword

if TYPE_CHECKING:
    from pathlib import Path

    from celery import Celery

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
