"""Print the results of a folder as Markdown: one table for each benchmark, with its machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import chart, record

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from matplotlib.figure import Figure

    from benchmarks.record import Cell, Result


def add_options(_parser: argparse.ArgumentParser) -> None:
    """None but the folder, which every command has."""


def run(arguments: argparse.Namespace) -> None:
    """Print every result that is there."""
    files = sorted(arguments.out.glob("*.json"))
    if not files:
        message = f"no results in {arguments.out}"
        raise SystemExit(message)
    print("\n\n".join(markdown(record.load(file)) for file in files))


def markdown(result: Result) -> str:
    """A result as a section."""
    first = result.rows[0]
    columns = [name for name in first if _spread_of(name) not in first]
    lines = [
        f"### {result.title}",
        "",
        result.headline,
        "",
        "| " + " | ".join(column.replace("_", " ") for column in columns) + " |",
        "|---" * len(columns) + "|",
        *("| " + " | ".join(_cell(row, name) for name in columns) + " |" for row in result.rows),
        "",
        f"{result.model}. {result.machine.line}; load before {result.machine.load_before:g}. "
        + ", ".join(f"{name} {_shown(value)}" for name, value in result.options.items())
        + ".",
    ]
    return "\n".join(lines)


def publish(result: Result, drawn: Figure, out: Path) -> None:
    """Save a result with its plot, print it, and say where it is."""
    files = record.save(result, out), chart.save(drawn, result, out)
    print(markdown(result), "", *files, sep="\n")


def _spread_of(column: str) -> str | None:
    """The column whose lowest or highest value this one is, if its name says so."""
    name, _, end = column.rpartition("_")
    return name if end in ("low", "high") else None


def _cell(row: dict[str, Cell], column: str) -> str:
    """A value, with its spread where there is one."""
    if f"{column}_low" not in row:
        return _shown(row[column])
    low, high = _shown(row[f"{column}_low"]), _shown(row[f"{column}_high"])
    return f"{_shown(row[column])} ({low} to {high})"


def _shown(value: Cell) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
