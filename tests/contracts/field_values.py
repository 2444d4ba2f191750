"""Values of a request's fields that several tests need, and the errors of a request."""

from __future__ import annotations

import pytest

from api_contracts import InvalidRequest
from api_contracts.parse import parse_request

EMBEDS = {"s3": "embeds/a.safetensors"}
PICTURE = {"s3": "pictures/a.png"}
NAN, INF = float("nan"), float("inf")


def faults_of(data: object) -> dict[str | None, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(data)  # type: ignore[arg-type]  # anything may come
    assert all(fault.where and fault.what and fault.limit for fault in caught.value.faults)
    return {fault.where: fault.limit for fault in caught.value.faults}
