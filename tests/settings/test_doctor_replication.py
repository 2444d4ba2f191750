"""`doctor` on replicated servers, by what INFO of Redis 6.2, 7.0 and Valkey 8 reports."""

from __future__ import annotations

from typing import Any

import pytest

from worker.doctor.replication import check_replication

PRIMARY = {"role": "master", "connected_slaves": 2, "cluster_enabled": 0}


@pytest.mark.parametrize(
    ("info", "by_sentinel", "wanted"),
    [
        ({"role": "master", "connected_slaves": 0}, False, []),
        ({}, False, []),
        (PRIMARY | {"min_slaves_good_slaves": 2}, True, [("min-replicas-to-write", True)]),
        (PRIMARY, False, [("min-replicas-to-write", False)]),
        ({"role": "master", "connected_slaves": 0}, True, [("min-replicas-to-write", False)]),
        ({"role": "slave"}, False, [("role", False)]),
        ({"role": "master", "cluster_enabled": 1}, False, [("cluster", False)]),
    ],
)
def test_what_a_failover_may_lose_is_named(
    info: dict[str, Any], *, by_sentinel: bool, wanted: list[tuple[str, bool]]
) -> None:
    """A lone server needs nothing; a replicated one must refuse writes without its replicas."""
    found = list(check_replication("broker", info, by_sentinel=by_sentinel))
    assert [(each.what.removeprefix("redis broker "), each.ok) for each in found] == wanted
    assert all(each.ok or each.fix for each in found)
