"""Pushes that are settled: they stay so, and the record lives until the last one is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationClient, Push, PushKind, PushState
from tests.push.pushes import TARGET, end
from tests.record.owners import TTL_S

if TYPE_CHECKING:
    from redis import Redis

    from tests.push.receiver import Receiver
    from worker.record.task_record import TaskRecord


def test_a_late_result_does_not_undo_a_delivery(
    client: GenerationClient, records: TaskRecord, hook: Receiver
) -> None:
    """A settled push stays settled."""
    end(client, records, "late", webhook=hook.origin)
    (due,) = records.pushes.take(1)
    records.pushes.settle(due, Push(state=PushState.DELIVERED, tries=1), None)
    records.pushes.settle(due, Push(state=PushState.WAITING, tries=1, error="late"), 5.0)
    assert client.handle("late").pushes()[PushKind.WEBHOOK].state is PushState.DELIVERED


@pytest.mark.parametrize("closed", ["before", "between", "after"])
@pytest.mark.parametrize("state", [PushState.DELIVERED, PushState.GIVEN_UP])
def test_a_record_lives_until_its_last_push_is_settled(
    client: GenerationClient, records: TaskRecord, redis: Redis, closed: str, state: PushState
) -> None:
    """Record and events get a time to live with the last settled push, never before."""
    keys = [client.keys.task("kept"), client.keys.events("kept")]
    to = {"queue": TARGET.queue, "task": TARGET.task}
    end(client, records, "kept", closed=closed == "before", webhook="https://a.b/", reply_to=to)
    assert [redis.ttl(key) for key in keys] == [-1, -1]
    one, other = records.pushes.take(2)
    records.pushes.settle(one, Push(state=PushState.WAITING, tries=1, error="late"), 0.001)
    for _ in range(2):  # the answer to the first was lost
        records.pushes.settle(one, Push(state=state, tries=2), None)
    if closed == "between":
        records.close("kept")
    assert [redis.ttl(key) for key in keys] == [-1, -1]
    records.pushes.settle(other, Push(state=state, tries=1), None)
    if closed == "after":
        assert [redis.ttl(key) for key in keys] == [-1, -1]
        records.close("kept")
    assert [TTL_S - 1 <= redis.ttl(key) <= TTL_S for key in keys] == [True, True]
