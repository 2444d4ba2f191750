"""A short campaign; `make fuzz` runs the long ones."""

from __future__ import annotations

import base64
import gc
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts.parse import parse_request
from tests.fuzz import mail, odd
from tests.fuzz.campaign import decode
from tests.fuzz.daemon import BATCH, bombard, daemon
from tests.fuzz.desk import Desk
from worker.broker.held_messages import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

#: Growth that is no leak, in MiB: caches that fill once.
SLACK_MIB = 48


def test_whatever_comes_is_answered_or_rejected() -> None:
    """Nothing raises, none that names its task goes unanswered, none is slow, memory is flat."""
    *_, tally = decode(seed=20, count=4_000)
    assert not tally.failures, tally.failures[0]
    assert {*tally.kinds} == {"accepted", "refused", "rejected"}
    (_, _, early), *_, (_, _, late) = tally.marks
    assert late - early < SLACK_MIB


@pytest.mark.timeout(900)
def test_a_worker_outlives_them() -> None:
    """Each is consumed and counted; records end; no strange key; the same picture afterwards.

    Memory is flat from the second batch on: the first one meets some code for the first time.
    """
    with daemon() as started:
        *_, report = bombard(started, seed=21, count=2 * BATCH)
    assert report.messages == 2 * BATCH
    assert report.rejected
    assert report.ended["invalid_request"] > 100
    _, (_, _, early), (_, _, late) = report.marks
    assert late - early < SLACK_MIB


#: Entries as large as one may be, each of a kind that might cost more than its length.
SHAPES: dict[str, Callable[[int], dict[str, Any]]] = {
    "fields": lambda n: {"prompt": "x", **{f"{number:x}": 0 for number in range(n // 12)}},
    "metadata": lambda n: {
        "prompt": "x", "metadata": {f"{number:x}": 0 for number in range(n // 12)},
    },
    "prompts": lambda n: {"prompt": [5] * (n // 3)},
    "seeds": lambda n: {"prompt": "x", "seed": [-1] * (n // 4)},
    "segments": lambda n: {"latents": {"s3": "a/" * (n // 2) + "!"}},
    "long prompt": lambda n: {"prompt": "\u00e4" * (n // 6)},
    "scheduler": lambda n: {"prompt": "x", "scheduler": "a" * n},
    "digits": lambda n: {"prompt": "x", "metadata": "9" * n},
    "empty lists": lambda n: {"prompt": [[]] * (n // 4)},
    "nested": lambda n: {"prompt": [odd.nested(0, 300)] * (n // 1500)},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_message_costs_no_more_than_its_length(shape: str) -> None:
    """Four times the length is about four times the time, and no slot gets what fills the memory.

    Once is it read, by the consumer; then only what is wrong with it goes on.
    """
    desk, took_s = Desk(), []
    for length in (MAX_MESSAGE_BYTES // 6, MAX_MESSAGE_BYTES * 2 // 3):
        body = json.dumps([[], {"request": SHAPES[shape](length)}, {}])
        entry = json.dumps(mail.message("t", base64.b64encode(body.encode()).decode())).encode()
        assert len(entry) < MAX_MESSAGE_BYTES
        took_s.append(min(_cpu_s(desk, entry) for _ in range(2)))
    assert took_s[1] < 8 * took_s[0] + 0.1
    assert took_s[1] < 10
    assert desk.largest_body_bytes < 1_000


def _cpu_s(desk: Desk, entry: bytes) -> float:
    """What it takes to refuse an entry, but for collecting what other tests have left."""
    gc.collect()
    gc.disable()
    try:
        began_s = time.process_time()
        assert desk.take(entry, whole=False).kind == "refused"
        return time.process_time() - began_s
    finally:
        gc.enable()


def test_faults_do_not_pile_up() -> None:
    """A request of a million wrong fields is refused for their number, before any is looked at."""
    many = {"prompt": "x", "metadata": {str(number): 0 for number in range(300_000)}}
    began_s = time.process_time()
    with pytest.raises(ValueError, match="300000 entries"):
        parse_request(many)
    assert time.process_time() - began_s < 0.1
