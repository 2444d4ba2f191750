"""What a worker measures of its tasks and of its calls of Redis."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import stamina
from redis.exceptions import ConnectionError as RedisConnectionError

from api_contracts.errors import ErrorCode
from api_contracts.result import Timings
from tests.record.busy_executor import WAIT_S, Busy
from worker import metrics
from worker.execution.outcome import TaskFailed
from worker.job_control import Step
from worker.redis_retry import retry_redis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Histogram
    from redis import Redis

    from api_contracts.names import Keys
    from worker.record.task_record import TaskRecord


def count_and_sum(histogram: Histogram, **labels: str) -> tuple[float, float]:
    """Number and sum of what a histogram has observed."""
    found = {
        (sample.name.removeprefix(histogram._name), *sample.labels.values()): sample.value
        for metric in histogram.collect()
        for sample in metric.samples
    }
    labelled = tuple(labels.values())
    return found.get(("_count", *labelled), 0.0), found.get(("_sum", *labelled), 0.0)


@pytest.fixture
def busy(records: TaskRecord, namespace: str) -> Iterator[Busy]:
    """An executor whose engine builds a model."""
    importlib.import_module("worker.engine.runner")
    made = Busy(records, namespace)
    yield made
    made.close()


def test_waits_are_measured_from_the_submission_and_in_the_first_attempt(
    busy: Busy,
) -> None:
    """The wait in the queue is measured at the claim, that for the first step when it is done."""
    waited, first_step = (
        count_and_sum(each) for each in (metrics.QUEUE_WAIT_S, metrics.FIRST_STEP_S)
    )
    busy.first = busy.deliver("first")
    assert busy.building.wait(WAIT_S)
    assert count_and_sum(metrics.QUEUE_WAIT_S)[0] == waited[0] + 1
    ((task, claim),) = busy.tasks.claimed()
    queued_s = claim.claimed_at_s - claim.submitted_at_s
    assert count_and_sum(metrics.QUEUE_WAIT_S)[1] == pytest.approx(waited[1] + queued_s)
    task.control.on_step(Step(2, 3, 0.5))
    assert count_and_sum(metrics.FIRST_STEP_S) == first_step
    task.control.on_step(Step(1, 3, 0.5))
    number, total_s = count_and_sum(metrics.FIRST_STEP_S)
    assert number == first_step[0] + 1
    assert queued_s <= total_s - first_step[1] < queued_s + WAIT_S


def test_a_submission_in_the_future_is_no_wait(busy: Busy, redis: Redis, keys: Keys) -> None:
    """A submission in the future, as after a clock was set back, counts as a wait of 0."""
    redis.hset(keys.task("first"), mapping={"status": "queued", "submitted_at": "4e9"})
    number, sum_s = count_and_sum(metrics.QUEUE_WAIT_S)
    busy.first = busy.deliver("first")
    assert busy.building.wait(WAIT_S)
    assert count_and_sum(metrics.QUEUE_WAIT_S) == (number + 1, sum_s)


@pytest.mark.parametrize("odd", ["nan", "-inf"])
def test_an_odd_time_of_submission_spoils_no_sum(
    busy: Busy, redis: Redis, keys: Keys, odd: str
) -> None:
    """Nothing is observed of a record that can't be read; one nan would stay in the sum."""
    redis.hset(keys.task("odd"), mapping={"status": "queued", "submitted_at": odd})
    before = count_and_sum(metrics.QUEUE_WAIT_S)
    with pytest.raises(ValueError, match="submitted_at"):
        busy.deliver("odd").result(WAIT_S)
    assert count_and_sum(metrics.QUEUE_WAIT_S) == before


def test_a_later_attempt_has_no_wait(busy: Busy) -> None:
    """A later attempt counts no wait, as the time since the submission has earlier attempts."""
    busy.first = busy.deliver("first")
    assert busy.building.wait(WAIT_S)
    waited = count_and_sum(metrics.QUEUE_WAIT_S)
    busy.go_on.set()
    busy.first.result(WAIT_S)  # requeued: the model can't be loaded
    busy.deliver("first").result(WAIT_S)
    assert count_and_sum(metrics.QUEUE_WAIT_S) == waited


def test_a_success_is_measured_by_stage() -> None:
    """Each duration of the result is one observation of its stage; the whole is apart."""
    values = {f"{stage}_s": number + 0.5 for number, stage in enumerate(metrics.STAGES)}
    before = {stage: count_and_sum(metrics.STAGE_S, stage=stage) for stage in metrics.STAGES}
    whole = count_and_sum(metrics.TASK_S)
    metrics.observe_success(Timings.model_validate(values | {"total_s": 18.0}))
    assert set(Timings.model_fields) == {*values, "total_s"}
    for number, stage in enumerate(metrics.STAGES):
        count, total_s = before[stage]
        assert count_and_sum(metrics.STAGE_S, stage=stage) == (count + 1, total_s + number + 0.5)
    assert count_and_sum(metrics.TASK_S) == (whole[0] + 1, whole[1] + 18.0)


def test_failures_are_counted_by_code(busy: Busy, redis: Redis, keys: Keys) -> None:
    """A failure is counted by code, and as a dead letter, once, when its task ends."""
    failures = metrics.FAILURES.labels("model_load_failed")._value
    before, letters = failures.get(), metrics.DEAD_LETTERS._value.get()
    busy.first = busy.deliver("first")
    busy.go_on.set()
    busy.first.result(WAIT_S)
    assert failures.get() == before
    assert metrics.DEAD_LETTERS._value.get() == letters
    busy.deliver("first").result(WAIT_S)
    assert failures.get() == before + 1
    assert metrics.DEAD_LETTERS._value.get() == letters + redis.xlen(keys.dead) == letters + 1


def test_a_refused_task_is_no_dead_letter(busy: Busy, redis: Redis, keys: Keys) -> None:
    """A refused task is no dead letter, as it fails by its caller's fault."""
    letters = metrics.DEAD_LETTERS._value.get()
    busy.first = busy.deliver("first", model="unknown")
    assert isinstance(busy.first.result(WAIT_S), TaskFailed)
    assert metrics.DEAD_LETTERS._value.get() == letters
    assert redis.xlen(keys.dead) == 0


PROCESSES = """
import os, sys, tempfile, threading
os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder = tempfile.mkdtemp()
from prometheus_client import CollectorRegistry
from worker import metrics
registry = CollectorRegistry()
metrics._Files(registry)
exits, seen, files = int(sys.argv[1]), [], set()
def value(name, **labels):
    return registry.get_sample_value(name, labels)
def run():
    metrics.S3_RETRIES.inc(2)
    metrics.FAILURES.labels("internal").inc()
    metrics.TASK_S.observe(3.0)
    metrics.WELL.set(1)
    os._exit(0)
def fork():
    pid = os.fork()
    if pid == 0:
        run()
    os.waitpid(pid, 0)
    return pid
for _ in range(exits - 1):
    metrics.remove_process(fork())
    files.add(len(os.listdir(folder)))
assert len(files) == 1, files
add = metrics._add_to
def add_during_a_scrape(*paths):
    add(*paths)  # the counts are in both files now
    scrape.start()
    scrape.join(0.5)
    metrics._add_to = add
scrape = threading.Thread(target=lambda: seen.append(value("sag_s3_retries_total")))
metrics._add_to = add_during_a_scrape
metrics.remove_process(fork())
scrape.join()
assert seen == [2 * exits], seen
assert value("sag_s3_retries_total") == 2 * exits
assert value("sag_task_failures_total", code="internal") == exits
assert value("sag_task_seconds_sum") == 3.0 * exits
assert value("sag_task_seconds_count") == exits
assert value("sag_task_seconds_bucket", le="2.5") == 0
assert value("sag_task_seconds_bucket", le="5.0") == exits
assert value("sag_workers_well") == 0
print("done")
"""


def test_processes_that_exited_cost_nothing_and_are_counted() -> None:
    """The number of files is the same after any number of exits, and no count is lost or doubled.

    Not in a scrape that comes while the counts of an exited process are added, either.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROCESSES, "40"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_every_series_begins_at_zero() -> None:
    """Prometheus sees no increase in a series whose first sample is 1."""
    program = (
        "from prometheus_client import generate_latest\n"
        "from worker import metrics\n"
        "print(generate_latest().decode())"
    )
    text = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    found = {line.rpartition(" ")[0] for line in text.splitlines() if line.endswith(" 0.0")}
    assert {f'sag_task_failures_total{{code="{code}"}}' for code in ErrorCode} <= found
    assert {
        'sag_deliveries_total{outcome="dropped"}', 'sag_messages_recovered_total{reason="lost"}',
        'sag_messages_rejected_total{reason="odd_record"}', "sag_redis_retries_total",
        'sag_pushes_total{kind="webhook",state="given_up"}',
        'sag_pushes_total{kind="unknown",state="lost"}',
        'sag_task_stage_seconds_count{stage="upload"}',
    } <= found  # fmt: skip


def test_repeated_calls_of_redis_are_counted() -> None:
    """The first try is no retry."""
    before = metrics.REDIS_RETRIES._value.get()
    failures = [RedisConnectionError("away"), RedisConnectionError("away")]

    def call() -> str:
        if failures:
            raise failures.pop()
        return "done"

    with stamina.set_testing(True, attempts=3):
        assert retry_redis(call) == "done"
        assert metrics.REDIS_RETRIES._value.get() == before + 2
        assert retry_redis(call) == "done"
    assert metrics.REDIS_RETRIES._value.get() == before + 2
