"""The embedded servers: ready means that a file can be stored; nothing is left running."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError

from worker import embedded

if TYPE_CHECKING:
    from pathlib import Path


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


def test_an_interrupt_in_the_middle_of_a_start_leaves_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process runs, and nobody has been told its id yet: Ctrl-C waits until somebody has."""
    made, started = subprocess.Popen, []

    def start(*args: Any, **kwargs: Any) -> Any:
        started.append(made(*args, **kwargs))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    with (
        pytest.raises(KeyboardInterrupt),
        embedded.running(["sleep", "60"], tmp_path / "log", lambda: True),
    ):
        pytest.fail("it was interrupted before")
    assert started[0].returncode == -signal.SIGTERM
