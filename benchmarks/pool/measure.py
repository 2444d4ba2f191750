"""One number of workers against a Redis of its own: start everything, wait, measure."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

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
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from benchmarks.pool.probes import Sent

#: Tasks that wait at any time: for each worker, and at least.
BACKLOG, LEAST_BACKLOG = 32, 500
#: How long workers go on after the last message was sent, in seconds.
LINGER_S = 2.5
#: Pause between two looks whether all workers have started, in seconds.
START_CHECK_S = 0.2
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
        backlog, probes = (
            stack.enter_context(process.start(name, ClientSide, url))
            for name in ("backlog", "probes")
        )
        threads = stack.enter_context(ThreadPoolExecutor())
        waiting = 0 if idle else max(LEAST_BACKLOG, BACKLOG * workers)
        backlog.remote(ClientSide.backlog)(waiting, 0)
        runs = [threads.submit(each.remote(WorkersSide.run)) for each in sides]
        _wait_for_start(redis, runs)
        from_s = time.monotonic() + arguments.settle
        quiet_s = arguments.seconds if idle else 0
        end_s = from_s + quiet_s + arguments.seconds
        redis.set(side.UNTIL, end_s + LINGER_S)
        if not idle:
            threads.submit(backlog.remote(ClientSide.backlog), waiting, end_s)
        send = ClientSide.send_some if idle else ClientSide.cancel_some
        load, sent = _watch(redis, from_s, quiet_s, lambda: probes.remote(send)(end_s))
        longest = redis_load.longest(redis)
        found = [each.result() for each in runs]
    return Measured(
        workers=workers,
        load=load,
        sent=sent,
        logs=[log for log, _, _ in found],
        longest=longest,
        late_s=[late_s for _, naps, _ in found for late_s in naps],
        simulator_cores=sum(cores for _, _, cores in found),
    )


def _wait_for_start(redis: Redis, runs: Sequence[Future[Any]]) -> None:
    """Until all workers have started; raises the error of a process that ended."""
    while int(redis.get(side.STARTED) or 0) < len(runs):
        for each in runs:
            if each.done():
                each.result()
        time.sleep(START_CHECK_S)


def _watch(
    redis: Redis, from_s: float, quiet_s: float, probe: Callable[[], Sent]
) -> tuple[Load, Sent]:
    """The load from a monotonic time on: while `probe` runs, or for `quiet_s` before it."""
    time.sleep(max(0.0, from_s - time.monotonic()))
    redis_load.watch_slow(redis)
    before = Snapshot.of(redis)
    if not quiet_s:
        sent = probe()
        return Load(before, Snapshot.of(redis)), sent
    time.sleep(quiet_s)
    load = Load(before, Snapshot.of(redis))
    return load, probe()
