"""Processor time by thread: whose it is, and the table that is made of it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import record, report, thread_cpu
from benchmarks.thread_cpu import AROUND, NAMES, NAMES_FOLDER, ThreadTimes, worker_pid
from benchmarks.turn import Turn

SAVED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "daemon.json"
#: Three threads that work for 0.3 s each, one of which ends, and one that only waits.
WORKER = """
import threading, time
def work():
    while time.thread_time() < 0.3:
        pass
def work_and_wait():
    work()
    worked.release()
    threading.Event().wait()
worked = threading.Semaphore(0)
for name in ("engine-side_0", "ThreadPoolExecutor-0_3"):
    threading.Thread(target=work_and_wait, name=name, daemon=True).start()
threading.Thread(target=threading.Event().wait, name="lease", daemon=True).start()
ending = threading.Thread(target=work)
ending.start()
ending.join()
worked.acquire()
worked.acquire()
print("done", flush=True)
input()
"""
#: A supervisor of it.
SUPERVISOR = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_a_threads_time_is_that_of_its_group() -> None:
    """A thread's time counts for the group of its name; the time of ended threads is in `other`."""
    command = [sys.executable, "-c", SUPERVISOR, WORKER]
    environment = os.environ | {"PYTHONPATH": str(NAMES_FOLDER)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        pid = worker_pid(process.pid)
        found = ThreadTimes.of(pid)
        process.communicate(b"\n")
    assert pid != process.pid
    for group in ("engine-side", "slots", "other"):
        assert 0.25 < found.seconds[group] < 0.45
    assert found.seconds["lease"] < 0.05
    assert found.seconds["engine"] == found.seconds["publisher"] == 0.0


def test_the_difference_is_divided_by_the_images() -> None:
    """The difference of two readings is divided by the images, and is in milliseconds."""
    nothing = dict.fromkeys(NAMES, 0.0)
    earlier, later = (ThreadTimes(nothing | {"slots": seconds}) for seconds in (1.0, 1.5))
    assert later.ms_an_image_since(earlier, 10) == nothing | {"slots": 50.0}


def test_the_table_has_a_row_for_each_group_and_for_all_but_the_engine() -> None:
    """Each row has the median of a daemon's turns; the text has the images per second."""
    turns = [Turn(2.0, cpu_ms=dict.fromkeys(NAMES, ms)) for ms in (1.0, 2.0, 4.0)]
    before = [replace(turn, images_per_s=1.0) for turn in turns[2:]]
    found = thread_cpu.result(record.load(SAVED), "x", {"now": turns, "before": before})
    assert [row["threads"] for row in found.rows] == [*NAMES, AROUND]
    assert (found.rows[0]["now_ms"], found.rows[0]["now_ms_high"]) == (2.0, 4.0)
    around = 2.0 * (len(NAMES) - 1)
    assert found.rows[-1]["now_ms"] == pytest.approx(around)
    assert f"{around:.1f} ms now at 2.00 images per second" in report.markdown(found)
    assert f"{2 * around:.1f} ms before at 1.00 images per second" in found.headline
