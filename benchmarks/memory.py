"""Peak memory against rows in one UNet call, on top of the weights.

On a GPU it is what torch allocates (`max_memory_allocated`); on the CPU the growth of the peak of
resident memory. Each point is measured in a fresh process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import chart, model, peak, process, record, report
from benchmarks.sides import Spread

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from benchmarks.record import Result

MIB = 2**20


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 24, 32, 48, 64], help="of one call"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of each point")
    model.add_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure and save."""
    found: dict[int, Spread] = {}
    with model.chosen(arguments) as chosen:
        machine = process.once("torch", record.machine, chosen.device)
        options = record.options(
            repeats=arguments.repeats, latent_side=chosen.latent_side, dtype=chosen.dtype
        )
        for rows in arguments.rows:
            grown = [
                process.once(f"{rows} rows", peak.growth_bytes, chosen, rows)
                for _ in range(arguments.repeats)
            ]
            if None in grown:
                print(f"{rows} rows: not enough memory")
                break
            found[rows] = Spread.of([each / MIB for each in grown if each is not None])
            print(f"{rows} rows: {found[rows].median:.1f} MiB")
    if not found:
        message = "not even one point fits into the memory"
        raise SystemExit(message)
    result = record.Result(
        name="memory-sd15" if arguments.sd15 else "memory",
        title="Peak memory of a UNet call, on top of the weights",
        headline=_headline(found, on_cpu=chosen.device == "cpu"),
        model=chosen.name,
        machine=machine,
        options=options,
        rows=[{"rows": rows, **spread.cells("peak_mib")} for rows, spread in found.items()],
    )
    report.publish(result, _plot(result, found), arguments.out)


def _headline(found: Mapping[int, Spread], *, on_cpu: bool) -> str:
    least, most = min(found), max(found)
    each = (found[most].median - found[least].median) / max(1, most - least)
    how = "growth of peak resident memory, a process each" if on_cpu else "allocated by torch"
    return (
        f"A call of {most} rows needs {found[most].median:.0f} MiB beside the weights, one of "
        f"{least} {found[least].median:.0f} MiB: {each:.1f} MiB for each row more ({how})."
    )


def _plot(result: Result, found: Mapping[int, Spread]) -> Figure:
    drawn, (axes,) = chart.figure(result)
    labels = [f"{spread.median:.0f}" for spread in found.values()]
    chart.lines(axes, list(found), {"peak": list(found.values())}, labels)
    axes.set_xlabel("rows in one UNet call")
    axes.set_ylabel("MiB on top of the weights")
    return drawn
