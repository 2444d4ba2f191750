"""Plain plots, 800 pixels wide, with the machine in the last line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.record import Result
    from benchmarks.sides import Spread

DPI = 100
SIZE_PX = (800, 460)
#: Of the first, second and third side everywhere.
COLOURS = ("#1b4fd6", "#d9822b", "#5c6670")
FAINT = "#dddddd"


def figure(result: Result, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty plot, with the model and the machine below."""
    drawn = Figure((SIZE_PX[0] / DPI, SIZE_PX[1] / DPI), dpi=DPI, layout="constrained")
    drawn.supxlabel(f"{result.model}\n{result.machine.line}", fontsize=8, color="#555555")
    found = drawn.subplots(1, panels, squeeze=False)[0]
    for axes in found:
        axes.grid(axis="y", color=FAINT)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return drawn, list(found)


def lines(
    axes: Axes, counts: Sequence[int], sides: Mapping[str, Sequence[Spread]], labels: Sequence[str]
) -> None:
    """A line with error bars for each side; `labels` go above the points."""
    for colour, (name, spreads) in zip(COLOURS, sides.items(), strict=False):
        medians = [spread.median for spread in spreads]
        errors = [
            [spread.median - spread.low for spread in spreads],
            [spread.high - spread.median for spread in spreads],
        ]
        axes.errorbar(
            counts, medians, errors, label=name, color=colour, marker="o", markersize=4, capsize=3
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    _label(axes, counts, sides, labels)


def bars(
    axes: Axes, groups: Sequence[str], sides: Mapping[str, Sequence[Spread]], labels: Sequence[str]
) -> None:
    """A group of bars with error bars for each of `groups`; `labels` go above the groups."""
    width = 0.8 / len(sides)
    for number, (name, spreads) in enumerate(sides.items()):
        places = [group + (number - (len(sides) - 1) / 2) * width for group in range(len(groups))]
        medians = [spread.median for spread in spreads]
        errors = [
            [spread.median - spread.low for spread in spreads],
            [spread.high - spread.median for spread in spreads],
        ]
        axes.bar(places, medians, width * 0.92, label=name, color=COLOURS[number])
        axes.errorbar(places, medians, errors, fmt="none", ecolor="black", capsize=3, linewidth=1)
    axes.set_xticks(range(len(groups)), groups)
    _label(axes, range(len(groups)), sides, labels)


def _label(
    axes: Axes, places: Sequence[int], sides: Mapping[str, Sequence[Spread]], labels: Sequence[str]
) -> None:
    """Write each label above the highest that stands at its place."""
    tops = [max(spread.high for spread in column) for column in zip(*sides.values(), strict=True)]
    for place, top, label in zip(places, tops, labels, strict=True):
        axes.annotate(
            label, (place, top), (0, 5), textcoords="offset points", ha="center", fontsize=9
        )
    axes.set_ylim(0, max(tops) * 1.18 or 1)


def save(drawn: Figure, result: Result, out: Path) -> Path:
    """Write `<name>.png` into `out`, with the title above; gives its path."""
    handles, names = drawn.axes[0].get_legend_handles_labels()
    if len(names) > 1:
        drawn.legend(
            handles,
            names,
            loc="outside upper center",
            ncols=len(names),
            frameon=False,
            title=result.title,
            title_fontsize=12,
        )
    else:
        drawn.suptitle(result.title, fontsize=12)
    path = out / f"{result.name}.png"
    drawn.savefig(path, dpi=DPI)
    return path
