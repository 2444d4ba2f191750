"""The daemon against the worker that people write by hand, `benchmarks/baseline/worker.py`.

Both are real processes over the same Redis (a database each) and the same S3, both warmed up with
one task. Time runs from the first submission to the last result.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from celery import Celery
from celery.exceptions import TimeoutError as ResultTimeout

from benchmarks import chart, model, process, record, report, service, tasks
from benchmarks.sides import Spread, alternate, ratio

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from celery.result import AsyncResult
    from matplotlib.figure import Figure

    from benchmarks.model import Model
    from benchmarks.record import Result
    from benchmarks.tasks import Task

SIDES = ("the daemon", "the worker written by hand")


@dataclass(frozen=True)
class ByHand:
    """The running baseline and the application that sends to it."""

    worker: service.Worker
    app: Celery

    def results(self, given: Sequence[Task]) -> list[str]:
        """Submit the tasks together, wait for all."""
        sent = [self.app.send_task("generate", args=[task.request()]) for task in given]
        return [self._result(each) for each in sent]

    def _result(self, sent: AsyncResult) -> str:
        while True:
            try:
                return str(sent.get(timeout=service.LOOK_S))
            except ResultTimeout:
                self.worker.must_live()


@contextmanager
def by_hand(servers: service.Servers, model: Model) -> Iterator[ByHand]:
    """The baseline in a Redis database of its own."""
    url = servers.redis_url.removesuffix("/0") + "/1"
    environment = {
        "BROKER_URL": url,
        "RESULT_URL": url,
        "MODEL": str(model.path),
        "DEVICE": model.device,
        "S3_ENDPOINT_URL": servers.s3.endpoint_url,
        "S3_BUCKET": service.BUCKET,
    }
    options = ["--pool", "prefork", "--concurrency", "1", "--loglevel", "INFO"]
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.baseline.worker", "worker"]
    with (
        service.worker(servers, "baseline", command + options, environment) as worker,
        Celery("baseline-client", broker=url, backend=url, set_as_current=False) as app,
    ):
        yield ByHand(worker, app)


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    service.add_options(parser)
    tasks.add_options(parser)
    model.add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure and save."""
    with (
        model.chosen(arguments) as chosen,
        service.servers() as servers,
        service.daemon(servers, chosen, arguments) as daemon,
        by_hand(servers, chosen) as baseline,
    ):
        machine = process.once("torch", record.machine, chosen.device)
        for side in (daemon.results, baseline.results):
            side(tasks.make(1, arguments))  # loads the model
        given = tasks.make(arguments.tasks, arguments)
        sides = [partial(_speed, daemon.results, given), partial(_speed, baseline.results, given)]
        speeds = alternate(sides, arguments.repeats)
    against = ratio(*speeds)
    result = record.Result(
        name="baseline-sd15" if arguments.sd15 else "baseline",
        title=f"The daemon against a worker written by hand, {arguments.tasks} tasks",
        headline=f"The daemon makes {against.median:.2f} times as many images per second as the "
        f"worker written by hand ({against.low:.2f} to {against.high:.2f} in "
        f"{arguments.repeats} turns), from the first submission to the last result.",
        model=chosen.name,
        machine=machine,
        options=service.described(arguments),
        rows=[
            {"side": side, **Spread.of(each).cells("images_per_s")}
            for side, each in zip(SIDES, speeds, strict=True)
        ],
    )
    report.publish(result, _plot(result, speeds, against), arguments.out)


def _speed(side: Callable[[Sequence[Task]], object], given: Sequence[Task]) -> float:
    """Images per second, from the first submission to the last result."""
    began_s = time.perf_counter()
    side(given)
    return len(given) / service.took_s(began_s)


def _plot(result: Result, speeds: Sequence[Sequence[float]], against: Spread) -> Figure:
    drawn, (axes,) = chart.figure(result)
    sides = {side: [Spread.of(each)] for side, each in zip(SIDES, speeds, strict=True)}
    label = f"{against.median:.2f} x ({against.low:.2f} to {against.high:.2f})"
    chart.bars(axes, [f"{result.options['tasks']} tasks"], sides, [label])
    axes.set_ylabel("images per second")
    return drawn
