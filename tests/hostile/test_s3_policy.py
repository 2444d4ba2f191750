"""The worker's rights in S3: the policy allows what it does and nothing else."""

from __future__ import annotations

import fnmatch
import json
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from worker import embedded
from worker.config.settings import Settings
from worker.errors import InputNotFoundError, StorageUnavailableError
from worker.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POLICY = Path(__file__).resolve().parents[2] / "deploy" / "s3" / "policy.json"
#: The right that each call needs, as AWS names it.
RIGHTS = {
    "HeadObject": "s3:GetObject", "GetObject": "s3:GetObject", "PutObject": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject", "ListObjectsV2": "s3:ListBucket",
}  # fmt: skip
#: The same in SeaweedFS, which writes and deletes by one right.
LEAST = ["Read:sag/outputs/*", "Write:sag/outputs/*", "Read:sag/inputs/*", "List:sag"]
KEYS = {"accessKey": "least", "secretKey": "least-secret"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.S3Server]:
    """An S3 server with a user that has the rights of the policy."""
    identity = {"name": "least", "credentials": [KEYS], "actions": LEAST}
    with embedded.s3_server(tmp_path_factory.mktemp("s3"), "sag", others=[identity]) as started:
        yield started


@pytest.fixture
def storage(server: embedded.S3Server, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The worker's storage as that user."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS["accessKey"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["secretKey"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return Storage(Settings(s3_endpoint_url=server.endpoint_url, s3_retry_s=0, device="cpu"))


@pytest.fixture
def calls(storage: Storage) -> list[tuple[str, str]]:
    """Every S3 call that the storage makes, as operation and key."""
    made: list[tuple[str, str]] = []
    client = storage._client(storage._settings.s3_endpoint_url)

    def note(params: dict[str, Any], model: Any, **_: Any) -> None:
        made.append((model.name, params["Key"]))

    client.meta.events.register("provide-client-params.s3", note)
    return made


def allows(operation: str, key: str) -> bool:
    """Whether the policy allows a call."""
    return any(
        RIGHTS[operation] in statement["Action"]
        and fnmatch.fnmatchcase(f"arn:aws:s3:::sag/{key}", statement["Resource"])
        for statement in json.loads(POLICY.read_text())["Statement"]
    )


def test_the_policy_suffices(
    storage: Storage, calls: list[tuple[str, str]], server: embedded.S3Server
) -> None:
    """The policy suffices for uploads, repeated uploads, inputs, `doctor` and presigned URLs."""
    key = storage.key("task", "0.png")
    for data in (b"first", b"second", b"second"):
        storage.put(key, data, "image/png")
    with urllib.request.urlopen(str(storage.presign(key))) as answer:
        assert answer.read() == b"second"
    _admin(server).put_object(Bucket="sag", Key="inputs/a.safetensors", Body=b"x")
    assert storage.get_input("a.safetensors", "latents") == b"x"
    with pytest.raises(InputNotFoundError):
        storage.get_input("absent.safetensors", "latents")
    storage.check("host")
    assert {operation for operation, _ in calls} == {
        "HeadObject", "GetObject", "PutObject", "DeleteObject",
    }  # fmt: skip
    assert [each for each in calls if not allows(*each)] == []


@pytest.mark.parametrize(
    "call",
    [
        lambda storage: storage.put("inputs/a.safetensors", b"x", "text/plain"),
        lambda storage: storage.put("elsewhere/a", b"x", "text/plain"),
        lambda storage: storage._call("get_object", {"Bucket": "sag", "Key": "elsewhere/a"}),
        lambda storage: storage._call("delete_object", {"Bucket": "sag", "Key": "inputs/a"}),
        lambda storage: storage._call("delete_bucket", {"Bucket": "sag"}),
    ],
)
def test_anything_else_is_refused(storage: Storage, call: Callable[[Storage], object]) -> None:
    """Other folders and the bucket itself are refused."""
    with pytest.raises(StorageUnavailableError, match="refused"):
        call(storage)


def test_the_policy_allows_no_more() -> None:
    """The policy has no wildcard actions, and deletes only what `doctor` wrote."""
    statements = json.loads(POLICY.read_text())["Statement"]
    named = [statement["Action"] for statement in statements]
    flat = {each for name in named for each in ([name] if isinstance(name, str) else name)}
    assert flat == set(RIGHTS.values())
    assert {statement["Resource"] for statement in statements} == {
        "arn:aws:s3:::sag/outputs/*", "arn:aws:s3:::sag/inputs/*",
        "arn:aws:s3:::sag/outputs/.doctor/*", "arn:aws:s3:::sag",
    }  # fmt: skip
    assert not allows("DeleteObject", "outputs/task/0.png")
    assert not allows("PutObject", "inputs/a.safetensors")
    assert not allows("GetObject", "elsewhere/a")


def _admin(server: embedded.S3Server) -> Any:
    import boto3

    return boto3.client(
        "s3", endpoint_url=server.endpoint_url, aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key, region_name="us-east-1",
    )  # fmt: skip
