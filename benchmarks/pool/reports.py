"""Tables and plots of what was measured, and what gives first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks import chart
from benchmarks.pool.moments import milliseconds
from benchmarks.record import Result, rounded
from benchmarks.sides import Spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.figure import Figure

    from benchmarks.pool.moments import Measured
    from benchmarks.record import Cell, Machine

MODEL = "No model: workers that compute nothing"
#: Clients that Redis accepts unless `maxclients` says otherwise, and bytes a second of 10 Gbit/s.
CLIENTS, NETWORK_BYTES = 10_000, 1.25e9
#: Commands by name in the second table; the others are added up.
NAMED = 14


def busy(
    measured: Sequence[Measured], machine: Machine, options: dict[str, Cell]
) -> Iterator[tuple[Result, Figure]]:
    """Of workers with more to do than they can."""
    result = Result(
        "pool", "One Redis and a growing number of busy workers", _what_gives(measured), MODEL,
        machine, options, [_busy_row(each) for each in measured],
    )  # fmt: skip
    latencies = {"claim": lambda m: m.claim_s(m.sent.client_s), "cancel": lambda m: m.cancel_s()}
    yield result, _plot(result, measured, latencies)
    last = measured[-1]
    rows = _by_command(last.load.commands, max(1, last.ended), "picture", with_time=True)
    headline = f"Commands of {last.workers} workers at {last.pace:.3g} pictures a second together."
    commands = Result(
        "pool-commands", "Commands by picture", headline, MODEL, machine, options, rows
    )
    yield commands, bars(commands, "command", "us_a_picture", "Redis µs for each picture")


def idle(
    measured: Sequence[Measured], machine: Machine, options: dict[str, Cell]
) -> Iterator[tuple[Result, Figure]]:
    """Of workers that wait."""
    last = measured[-1]
    rate = last.load.calls / last.load.seconds / last.workers
    result = Result(
        "pool-idle", "One Redis and a growing number of workers that wait",
        f"{rate:.2f} commands a second for each of {last.workers} workers.", MODEL,
        machine, options, [_idle_row(each) for each in measured],
    )  # fmt: skip
    latencies = {
        "our client": lambda m: m.claim_s(m.sent.client_s),
        "LPUSH alone": lambda m: m.claim_s(m.sent.raw_s),
    }
    yield result, _plot(result, measured, latencies)
    worker_seconds = last.workers * last.load.seconds
    rows = _by_command(last.load.commands, worker_seconds, "worker_second", with_time=False)
    commands = Result(
        "pool-idle-commands", "Commands of a worker that waits",
        f"Of each of {last.workers} workers, in a second.", MODEL, machine, options, rows,
    )  # fmt: skip
    yield commands, bars(commands, "command", "calls_a_worker_second", "calls a second of a worker")


def _busy_row(each: Measured) -> dict[str, Cell]:
    load, ended = each.load, max(1, each.ended)
    megabytes = load.network_bytes / 1e6
    return {
        "workers": each.workers,
        "pictures_a_second": rounded(each.pace),
        **each.load_cells(),
        "commands_a_picture": rounded(load.calls / ended),
        "redis_us_a_picture": rounded(1e6 * load.main_s / ended),
        "network_mb_a_second": rounded(megabytes / load.seconds),
        "network_mb_a_picture": rounded(megabytes / ended),
        "rewrite_core_share": rounded(
            (load.after.children_s - load.before.children_s) / load.seconds
        ),
        "memory_mb": rounded(load.after.memory_bytes / 1e6),
        **milliseconds("claim", each.claim_s(each.sent.client_s)),
        **milliseconds("cancel", each.cancel_s()),
        **each.latency_cells(),
    }


def _idle_row(each: Measured) -> dict[str, Cell]:
    rate = each.load.calls / each.load.seconds
    return {
        "workers": each.workers,
        "commands_a_second_a_worker": rounded(rate / each.workers),
        **each.load_cells(),
        **milliseconds("client", each.claim_s(each.sent.client_s)),
        **milliseconds("lpush", each.claim_s(each.sent.raw_s)),
        **each.latency_cells(),
    }


def _by_command(
    commands: Mapping[str, tuple[int, int]], number: float, unit: str, *, with_time: bool
) -> list[dict[str, Cell]]:
    """Rows by command; those inside of scripts count as EVALSHA's, too."""
    if not with_time:
        commands = dict(sorted(commands.items(), key=lambda each: -each[1][0]))
    named = list(commands.items())
    others = [each for _, each in named[NAMED:]]
    if others:
        total = sum(calls for calls, _ in others), sum(usec for _, usec in others)
        named = [*named[:NAMED], (f"{len(others)} others", total)]
    rows: list[dict[str, Cell]] = []
    for name, (calls, usec) in named:
        times = {"us_a_call": usec / calls, f"us_a_{unit}": usec / number}
        cells = {f"calls_a_{unit}": calls / number} | (times if with_time else {})
        rows.append({"command": name} | {column: rounded(cell) for column, cell in cells.items()})
    return rows


def _what_gives(measured: Sequence[Measured]) -> str:
    """The number of workers at one picture a second each at which each limit is reached.

    Redis's work is a part for each picture and a part for each worker; both are fitted.
    """
    shares = [each.load.core_share for each in measured]
    made = [[each.pace, each.workers] for each in measured]
    (a_picture, a_worker), *_ = np.linalg.lstsq(np.array(made), np.array(shares), rcond=None)
    if len(measured) == 1 or min(a_picture, a_worker) < 0:
        a_picture, a_worker = measured[-1].load.core_share / max(measured[-1].pace, 1e-9), 0.0
    last = measured[-1]
    network = last.load.network_bytes / max(1, last.ended)
    limits = {
        f"its {CLIENTS:,} connections (maxclients)": CLIENTS
        * last.workers
        / last.load.after.connections,
        "one core of Redis": 1 / (a_picture + a_worker),
        "10 Gbit/s": NETWORK_BYTES / network,
    }
    ordered = sorted(limits.items(), key=lambda each: each[1])
    found = "; ".join(f"{name} at {workers:,.0f} workers" for name, workers in ordered)
    return (
        f"At one picture a second of each worker these are used up: {found}. A picture costs "
        f"{1e6 * a_picture:,.0f} µs of Redis's core, a worker {1e6 * a_worker:,.0f} µs a second."
    )


def _plot(result: Result, measured: Sequence[Measured], latencies: Mapping[str, object]) -> Figure:
    """Redis's share of a core, and latencies: medians up to the 95th percentile."""
    drawn, (share, latency) = chart.figure(result, panels=2)
    workers = [each.workers for each in measured]
    shares = [each.load.core_share for each in measured]
    labels = [f"{each.load.calls / each.load.seconds:,.0f}/s" for each in measured]
    chart.lines(share, workers, {"Redis": [Spread(*[each] * 3) for each in shares]}, labels)
    share.set_ylabel("share of a core (commands a second)")
    sides = {"PING": [_spread(each.sent.ping_s) for each in measured]}
    for name, seconds_of in latencies.items():
        sides[name] = [_spread(seconds_of(each)) for each in measured]  # type: ignore[operator]  # of a Measured
    chart.lines(latency, workers, sides, [""] * len(workers))
    latency.set_ylabel("milliseconds, median to 95th percentile")
    latency.set_yscale("symlog", linthresh=1)
    latency.legend(frameon=False)
    for axes in (share, latency):
        axes.set_xlabel("workers")
    return drawn


def _spread(seconds: Sequence[float]) -> Spread:
    cells = milliseconds("", seconds)
    middle, high = (float(cells[name] or 0.0) for name in ("_ms_p50", "_ms_p95"))
    return Spread(middle, middle, high)


def bars(result: Result, names: str, column: str, label: str) -> Figure:
    """A horizontal bar for each row, with what column `names` has beside it."""
    drawn, (axes,) = chart.figure(result)
    rows = result.rows[::-1]
    axes.barh(
        [str(row[names]) for row in rows],
        [float(row[column] or 0) for row in rows],
        color=chart.COLOURS[0],
    )
    axes.set_xlabel(label)
    return drawn
