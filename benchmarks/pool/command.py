"""How many workers one Redis serves: simulated ones, whose calls to Redis are the real ones.

Each number of workers has a Redis of its own. Busy workers have tasks without end; with `--idle`
they wait, and messages come now and then. Workers compute nothing and store nothing in S3.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from redis import Redis

from benchmarks import process, record, report
from benchmarks.pool import costs_report, measure, reports
from worker import embedded

if TYPE_CHECKING:
    import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """How many, and what they do."""
    add = parser.add_argument
    add("--workers", type=int, nargs="+", default=[10, 100, 300, 1000])
    add("--idle", action="store_true", help="workers that wait")
    add("--costs", action="store_true", help="what each call of a task costs Redis, one by one")
    add("--before", type=Path, help="the same, also of another checkout")
    add("--pace", type=float, default=1.0, help="pictures a second of one worker, all slots in use")
    add("--most", type=float, default=100.0, help="pictures a second of all workers, at most")
    add("--slots", type=int, default=16, help="tasks that a worker runs at once")
    add("--steps", type=int, default=25, help="of a task")
    add("--checkpoint-every", type=int, default=5, help="SAG_CHECKPOINT_EVERY; 0 saves none")
    add("--checkpoint-kb", type=float, default=197.0, help="one image of 512x512, dpmpp_2m: 197")
    add("--lease-s", type=float, default=15.0, help="SAG_LEASE_S")
    add("--seconds", type=float, default=20.0, help="that are measured")
    add("--settle", type=float, default=10.0, help="seconds before, after the start")
    add("--processes", type=int, default=2, help="that simulate workers")


def run(arguments: argparse.Namespace) -> None:
    """Measure and save."""
    machine = process.once("torch", record.machine, "cpu")
    if arguments.costs or arguments.before is not None:
        made = costs_report.made(arguments, machine, _described(arguments))
        report.publish(*made, arguments.out)
        return
    measured = []
    for workers in arguments.workers:
        if arguments.idle:
            measured.append(measure.idle(workers, arguments))
        else:
            pace = min(arguments.pace, arguments.most / workers)
            measured.append(measure.busy(workers, pace, arguments))
        for error in measured[-1].errors[:3]:
            print(f"{workers} workers, {len(measured[-1].errors)} errors: {error}")
    results = reports.idle if arguments.idle else reports.busy
    for result, drawn in results(measured, machine, _described(arguments)):
        report.publish(result, drawn, arguments.out)


def _described(arguments: argparse.Namespace) -> dict[str, record.Cell]:
    """What was asked for, and the server."""
    given = {name: value for name, value in vars(arguments).items() if name != "out"}
    with (
        embedded.scratch() as folder,
        embedded.redis_server(folder) as url,
        Redis.from_url(url) as redis,
    ):
        version = redis.info("server")["redis_version"]
    return record.options(**given, redis=version)
