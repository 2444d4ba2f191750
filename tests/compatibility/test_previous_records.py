"""Both versions of a worker's record write and read the same keys: a task moves between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from api_contracts import GenerationClient, TaskStatus
from api_contracts.events import EVENT
from tests.compatibility.conftest import as_previous_reads
from tests.record.owners import PROGRESS, RESULT, append, save_checkpoint, take, worker
from tests.service.conftest import END_S, check_events
from worker.record.claim import WriteAnswer

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

    from api_contracts.names import Keys

#: The previous version's half of a task: its first or its second attempt; prints the events.
PREVIOUS = """
import json, sys
import api_contracts
from api_contracts import GenerationClient
from api_contracts.events import TaskStatus
from worker.claims import Claim, Claims
url, folder, namespace, part, progress, result = sys.argv[1:]
assert api_contracts.__file__.startswith(folder), api_contracts.__file__
with GenerationClient(url, namespace) as client:
    claims = Claims(client.redis, client.keys, "host:old:1", record_ttl_s=1000, lease_s=30.0)
    claim = claims.claim(
        "t", started={"model": "default", "device": "cpu"}, request='{"prompt":"x"}',
        queue="generate.default", deadline_s=None, expires_at_s=None, max_attempts=3,
    )
    assert isinstance(claim, Claim) and claim.answer == "run", claim
    assert claims.append(claim, "progress", json.loads(progress)) == 0
    if part == "first":
        assert claims.keep(claim, 1, b"state") != -1
        assert claims.requeue(claim, {"reason": "drained"}, counts=False)
    else:
        assert (claim.attempt, claim.checkpoint_step, claims.kept("t")) == (1, 1, b"state")
        result = json.loads(result)
        assert claims.finish(claim, TaskStatus.SUCCEEDED, result, {"result": result})
        claims.close("t")
        for event in client.handle("t").events(timeout=10):
            print(event.model_dump_json())
"""
KINDS = ["queued", "started", "progress", "requeued", "started", "progress", "succeeded"]


def run_previous(folder: Path, url: str, namespace: str, part: str) -> str:
    """Run `PREVIOUS`; gives what it prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PREVIOUS, url, str(folder), namespace, part,
         json.dumps(PROGRESS), json.dumps(RESULT)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True, text=True, check=False, timeout=END_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_todays(redis: Redis, keys: Keys, part: str) -> None:
    """Today's half of a task: its first or its second attempt."""
    records = worker(redis, keys, "host:new:1")
    claim = take(records, "t")
    written = WriteAnswer.WRITTEN
    assert append(records, claim, "progress", PROGRESS) is written
    if part == "first":
        assert save_checkpoint(records, claim, 1, b"state") is written
        assert records.requeue(claim, {"reason": "drained"}, counts=False) is written
    else:
        checkpoint = claim.checkpoint_step, records.load_checkpoint("t")
        assert (claim.attempt, *checkpoint) == (1, 1, b"state")
        records.finish(claim, TaskStatus.SUCCEEDED, RESULT, {"result": RESULT})
        records.close("t")


@pytest.mark.parametrize("upgraded", [True, False], ids=["upgrade", "way back"])
def test_an_attempt_of_one_version_continues_in_the_other(
    previous: Path, redis_url: str, redis: Redis, namespace: str, upgraded: bool
) -> None:
    """The second attempt finds fence, attempt, events and checkpoint; both clients read the end."""
    with GenerationClient(redis_url, namespace) as client:
        handle = client.submit({"prompt": "x"}, "t")
        if upgraded:
            run_previous(previous, redis_url, namespace, "first")
            run_todays(redis, client.keys, "second")
        else:
            run_todays(redis, client.keys, "first")
            lines = run_previous(previous, redis_url, namespace, "second").splitlines()
        events = list(handle.events(timeout=END_S))
        check_events(events)
        assert [event.type for event in events] == KINDS
        if not upgraded:
            read = [EVENT.validate_json(line) for line in lines]
            assert read == [as_previous_reads(event) for event in events]
        assert handle.status() is TaskStatus.SUCCEEDED
