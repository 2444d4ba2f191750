"""One number of workers against a Redis of its own: start everything, wait, measure."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from redis import Redis

from benchmarks import process
from benchmarks.pool import redis_load, side
from benchmarks.pool.moments import Measured
from benchmarks.pool.plan import Plan
from benchmarks.pool.probes import ClientSide
from benchmarks.pool.redis_load import Load, Snapshot
from benchmarks.pool.side import WorkersSide
from worker import embedded

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

#: Tasks that wait at any time: for each worker, and at least.
BACKLOG, LEAST_BACKLOG = 4, 200
#: How long workers go on after the last message was sent, in seconds.
LINGER_S = 2.5
#: Clients that Redis accepts by default: 10,000.
MAX_CLIENTS = 19_900


def busy(workers: int, pace: float, arguments: argparse.Namespace) -> Measured:
    """Workers with more to do than they can."""
    return _measure(_plans(workers, pace, arguments), arguments, idle=False)


def idle(workers: int, arguments: argparse.Namespace) -> Measured:
    """Workers that wait; the load is that before messages are sent."""
    return _measure(_plans(workers, 4 * arguments.slots, arguments), arguments, idle=True)


def _plans(workers: int, pace: float, arguments: argparse.Namespace) -> Iterator[Plan]:
    """Shares of the processes, without a URL yet."""
    count = min(workers, arguments.processes)
    for number in range(count):
        first, end = (workers * each // count for each in (number, number + 1))
        yield Plan(
            url="",
            first=first,
            workers=end - first,
            slots=arguments.slots,
            steps=arguments.steps,
            pace=pace,
            checkpoint_every=arguments.checkpoint_every,
            checkpoint_bytes=int(1024 * arguments.checkpoint_kb),
            lease_s=arguments.lease_s,
        )


def _measure(plans: Iterator[Plan], arguments: argparse.Namespace, *, idle: bool) -> Measured:
    with ExitStack() as stack:
        url = stack.enter_context(embedded.redis_server(stack.enter_context(embedded.scratch())))
        redis = stack.enter_context(Redis.from_url(url))
        redis.config_set("maxclients", MAX_CLIENTS)
        sides, workers = [], 0
        for plan in plans:
            given = vars(plan) | {"url": url}
            sides.append(stack.enter_context(process.start("workers", side.start, given)))
            workers += plan.workers
        clients = [
            stack.enter_context(process.start(name, ClientSide, url))
            for name in ("backlog", "probes")
        ]
        waiting = max(LEAST_BACKLOG, BACKLOG * workers)
        threads = stack.enter_context(ThreadPoolExecutor())
        if not idle:
            clients[0].remote(ClientSide.backlog)(waiting, 0)
        from_s = time.monotonic() + arguments.settle
        quiet_s = from_s + arguments.seconds
        end_s = quiet_s + (arguments.seconds if idle else 0)
        runs = [
            threads.submit(each.remote(WorkersSide.run), end_s + LINGER_S, arguments.settle / 2)
            for each in sides
        ]
        if not idle:
            threads.submit(clients[0].remote(ClientSide.backlog), waiting, end_s)
        _sleep_until(from_s)
        redis_load.watch_slow(redis)
        before = Snapshot.of(redis)
        if idle:
            _sleep_until(quiet_s)
            load = Load(before, Snapshot.of(redis))
            sent = clients[1].remote(ClientSide.send_some)(end_s)
        else:
            sent = clients[1].remote(ClientSide.cancel_some)(end_s)
            load = Load(before, Snapshot.of(redis))
        longest = redis_load.longest(redis)
        found = [each.result() for each in runs]
        took_s = end_s + LINGER_S - from_s + arguments.settle
    return Measured(
        workers=workers,
        load=load,
        sent=sent,
        logs=[log for log, _, _ in found],
        longest=longest,
        late_s=[late_s for _, naps, _ in found for late_s in naps],
        simulator_cores=sum(cpu_s for _, _, cpu_s in found) / took_s,
    )


def _sleep_until(at_s: float) -> None:
    time.sleep(max(0.0, at_s - time.monotonic()))
