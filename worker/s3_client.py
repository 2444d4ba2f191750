"""A boto3 client for S3 that trusts the same authorities as all connections of this process."""

from __future__ import annotations

import os
from typing import Any

#: Socket timeouts of a request, in seconds.
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 30


def connect(endpoint_url: str | None, *, checksums: bool) -> Any:  # noqa: ANN401  # boto3 clients have no type
    """A client; `endpoint_url` None leaves the endpoint to AWS's own variables and files.

    Without `checksums` none is sent but what the caller adds.
    """
    import boto3.session  # noqa: PLC0415  # takes a second to import
    from botocore.config import Config  # noqa: PLC0415  # as above

    # A new session: the default one is not thread-safe.
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint_url,
        verify=_authorities(),
        config=Config(
            signature_version="s3v4",
            request_checksum_calculation="when_supported" if checksums else "when_required",
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path" if endpoint_url else "auto"},
        ),
    )


def _authorities() -> str | None:
    """The file of trusted authorities; None for boto3's own choice.

    boto3 reads AWS_CA_BUNDLE, then REQUESTS_CA_BUNDLE, but not the variable of OpenSSL, which all
    other connections of this process follow.
    """
    return None if os.environ.get("AWS_CA_BUNDLE") else os.environ.get("SSL_CERT_FILE") or None
