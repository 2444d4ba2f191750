"""Records that producers wrote: they cost no other task its spans, and no task its attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.record.owners import lapse, now_s, take, worker
from tests.traces.attempts import QUEUE, claim, exporting
from worker.record.task_record import MAX_OWNER_CHARS

if TYPE_CHECKING:
    from redis import Redis

    from api_contracts.names import Keys
    from tests.traces.collector import Collector

RUNNING = {"status": "running", "attempt": "1", "fence": "1", "submitted_at": "1", "token": "t"}
#: Fields of a record, and its score in `ns:open`.
ODD: dict[str, tuple[dict[str, Any], float | None]] = {
    "negative-submission": ({"status": "queued", "submitted_at": "-5"}, None),
    "early-submission": ({"status": "queued", "submitted_at": "1"}, None),
    "minus-infinity": ({"status": "queued", "submitted_at": "1", "fence": "1"}, float("-inf")),
    "infinity": ({"status": "queued", "submitted_at": "1", "fence": "1"}, float("inf")),
    "no-start": (RUNNING | {"started_at": "x", "owner": "y"}, None),
    "negative-start": (RUNNING | {"started_at": "-9e18", "owner": "y"}, None),
    "late-start": (RUNNING | {"started_at": "9e18", "owner": "y"}, None),
    "start-nan": (RUNNING | {"started_at": "nan", "owner": "y"}, None),
    "long-owner": (RUNNING | {"started_at": "1", "owner": "y" * 100_000}, None),
    "owner-in-latin-1": (RUNNING | {"started_at": "1", "owner": b"\xfc" * 3}, None),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_record_costs_no_spans(
    odd: str, redis: Redis, keys: Keys, receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An odd record's claim is granted and traced, and other spans of its batch are exported."""
    fields, score = ODD[odd]
    for name, value in fields.items():
        redis.hset(keys.task(odd), name, value)
    if fields["status"] == "running":
        lapse(redis, keys, odd)
    if score is not None:
        redis.zadd(keys.open, {odd: score})
    claimed = take(worker(redis, keys, "first"), odd)
    assert 0 <= claimed.since_s <= claimed.claimed_at_s <= now_s(redis)
    assert len(claimed.lost_owner) <= MAX_OWNER_CHARS
    with exporting(monkeypatch, receiver.url, BSP_SCHEDULE_DELAY="3600000") as traces:
        for each in (claimed, claim(f"beside-{odd}")):
            span = traces.attempt(each, "", QUEUE, {})
            assert span is not None
            span.end([], {}, None)
    assert [each.name for each in receiver.of(f"beside-{odd}")] == ["wait", "attempt"]
    spans = receiver.of(odd)
    assert [each for each in spans if each.name == "attempt"]
    assert all(0 <= each.began_ns <= each.ended_ns for each in spans)


def test_a_clock_that_is_behind_gives_no_negative_time(
    receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait since 1970 begins at 0 where this machine's clock is behind Redis's."""
    late = claim("behind", since_s=1.0, claimed_at_s=claim().claimed_at_s + 3600)
    with exporting(monkeypatch, receiver.url) as traces:
        span = traces.attempt(late, "", QUEUE, {})
        assert span is not None
        span.end([], {}, None)
    wait = receiver.of("behind")[0]
    assert (wait.name, wait.began_ns) == ("wait", 0)
