"""The embedded S3 server: ready means that a file can be stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError

from worker import embedded

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_server_that_can_store_nothing_yet_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket may be there before there is room for a file; that is no reason to give up."""
    made = boto3.client
    refused: list[str] = []

    def client(*args: Any, **kwargs: Any) -> Any:
        real = made(*args, **kwargs)
        store = real.put_object

        def put_object(**arguments: Any) -> Any:
            if not refused:
                refused.append(arguments["Key"])
                raise ClientError({"Error": {"Code": "InternalError"}}, "PutObject")
            return store(**arguments)

        real.put_object = put_object
        return real

    monkeypatch.setattr(boto3, "client", client)
    with embedded.s3_server(tmp_path, "late"):
        assert refused == [".ready"]
