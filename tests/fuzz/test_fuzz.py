"""Short campaigns of hostile messages; `make fuzz` runs long ones."""

from __future__ import annotations

import base64
import gc
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from api_contracts.names import MAX_MESSAGE_BYTES
from api_contracts.parse import parse_request
from tests.fuzz import hostile_messages, odd_values
from tests.fuzz.campaign import run_in_process
from tests.fuzz.daemon import BATCH, daemon, send_messages
from tests.fuzz.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

#: Growth that is no leak, in MiB: caches that fill once.
SLACK_MIB = 48


@pytest.mark.parametrize("count", [600, pytest.param(4_000, marks=pytest.mark.slow)])
def test_every_message_is_answered_or_rejected(count: int) -> None:
    """Nothing raises, each message with a task id is answered, none is slow, memory is flat."""
    *_, tally = run_in_process(seed=20, count=count)
    assert not tally.failures, tally.failures[0]
    assert {*tally.kinds} == {"accepted", "refused", "rejected"}
    (_, _, early), *_, (_, _, late) = tally.marks
    assert late - early < SLACK_MIB


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_serves_on_after_hostile_messages() -> None:
    """A worker consumes and counts hostile messages, ends their records, and serves on.

    It makes the same picture afterwards. Memory is flat from the second batch on: the first one
    runs some code for the first time.
    """
    with daemon() as started:
        *_, report = send_messages(started, seed=21, count=2 * BATCH)
    assert report.messages == 2 * BATCH
    assert report.rejected
    assert report.ended["invalid_request"] > 100
    _, (_, _, early), (_, _, late) = report.marks
    assert late - early < SLACK_MIB


#: Requests of a given length, each of a kind that might cost more than in proportion to it.
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
    "nested": lambda n: {"prompt": [odd_values.nested(0, 300)] * (n // 1500)},
}  # fmt: skip


@pytest.fixture(scope="module")
def imported() -> None:
    """A first pipeline imports the worker; that time is not the first test's."""
    Pipeline()


@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize("part", [16, pytest.param(1, marks=pytest.mark.nightly, id="whole")])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_message_costs_time_in_proportion_to_its_length(shape: str, part: int) -> None:
    """Four times the length takes about four times as long, and slots get no large body.

    The consumer reads the body once, and passes on only the errors in it. The longest is as large
    as a message may be, divided by `part`.
    """
    pipeline, took_s = Pipeline(), []
    for length in (MAX_MESSAGE_BYTES // 6 // part, MAX_MESSAGE_BYTES * 2 // 3 // part):
        body = json.dumps([[], {"request": SHAPES[shape](length)}, {}])
        entry = json.dumps(
            hostile_messages.message("t", base64.b64encode(body.encode()).decode())
        ).encode()
        assert len(entry) < MAX_MESSAGE_BYTES
        took_s.append(min(_cpu_s(pipeline, entry) for _ in range(2)))
    assert took_s[1] < 8 * took_s[0] + 0.1
    assert took_s[1] < 10
    assert pipeline.largest_body_bytes < 1_000


def _cpu_s(pipeline: Pipeline, entry: bytes) -> float:
    """Processor time to refuse an entry, without the garbage collection of other tests' objects."""
    gc.collect()
    gc.disable()
    try:
        began_s = time.process_time()
        assert pipeline.take(entry, whole=False).kind == "refused"
        return time.process_time() - began_s
    finally:
        gc.enable()


def test_many_wrong_fields_are_refused_for_their_number() -> None:
    """A request with 300,000 wrong fields is refused before any of them is checked."""
    many = {"prompt": "x", "metadata": {str(number): 0 for number in range(300_000)}}
    began_s = time.process_time()
    with pytest.raises(ValueError, match="300000 entries"):
        parse_request(many)
    assert time.process_time() - began_s < 0.1
