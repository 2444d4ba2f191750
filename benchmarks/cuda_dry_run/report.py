"""What a dry run found, as Markdown tables."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from benchmarks import lora
from benchmarks.cuda_dry_run import row_adapters
from benchmarks.cuda_dry_run.dry_run import TASKS
from worker.engine.device.warmup import TRIED_ROWS
from worker.engine.sampling.samplers import SAMPLERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.cuda_dry_run.dry_run import Found
    from benchmarks.cuda_dry_run.place import Place
    from benchmarks.cuda_dry_run.tally import Tally, Wait

_MIB = 2**20
#: Calls of the first table, in this order; UNet calls of other numbers of rows are left out.
_CALLS = (
    "load", "load an adapter", "unload an adapter", "measure rows",
    "encode, 8 texts", "encode, 16 texts",
    "encode a picture", "encode a picture and its mask", "draw a start",
    *(f"UNet, {rows} row{'s' * (rows > 1)}" for rows in sorted({*TRIED_ROWS, TASKS // 2 * 3})),
    "pace", "decode, 1 image", "decode, 8 images", "preview by the map", "preview by the decoder",
    "finish a picture", "checkpoint, capture", "checkpoint, to bytes",
)  # fmt: skip


def faults(found: Found) -> list[str]:
    """Each fault once, with how often it was seen, and the errors of jobs."""
    counted = Counter(str(fault) for fault in found.faults)
    return [f"{text} ({times} times)" for text, times in counted.items()] + found.errors


def markdown(found: Found, *, lines: bool) -> str:
    """All tables: calls, steps of the samplers, full rounds by function or line, and waits."""
    kinds: dict[str, list[Tally]] = {}
    for tally in found.tallies:
        kinds.setdefault(tally.kind, []).append(tally)
    head = f"torch {torch.__version__}, {found.model}, float16, weights of "
    return "\n\n".join(
        (
            f"{head}{found.weights_bytes / _MIB:.0f} MiB",
            _calls_table(kinds),
            _samplers_table(kinds),
            _rounds_table(found.full_rounds, lines=lines),
            *(() if found.adapters is None else _adapters(found.adapters)),
            _waits_table(found.waits),
        )
    )


def _calls_table(kinds: dict[str, list[Tally]]) -> str:
    head = ("call", "kernels", "bytes to device", "bytes to host", "waits", "peak, MiB")
    rows = [
        (
            kind,
            _range(each, lambda tally: tally.launched),
            _range(each, lambda tally: tally.to_device_bytes),
            _range(each, lambda tally: tally.to_host_bytes),
            _range(each, lambda tally: len(tally.waits)),
            f"{max(tally.growth_bytes for tally in each) / _MIB:,.0f}",
        )
        for kind in _CALLS
        if (each := kinds.get(kind))
    ]
    return _table(head, rows)


def _samplers_table(kinds: dict[str, list[Tally]]) -> str:
    """Samplers with the same numbers share a row."""
    head = ("step of", "kernels", "bytes to device", "waits", "waits to resume")
    rows: dict[tuple[str, ...], list[str]] = {}
    for name in SAMPLERS:
        steps, resumed = kinds.get(f"step, {name}", ()), kinds.get(f"resume, {name}", ())
        if not steps:
            continue
        cells = (
            _range(steps, lambda tally: tally.launched),
            _range(steps, lambda tally: tally.to_device_bytes),
            _range(steps, lambda tally: len(tally.waits)),
            _range(resumed, lambda tally: len(tally.waits)) if resumed else "",
        )
        rows.setdefault(cells, []).append(f"`{name}`")
    return _table(head, [(", ".join(names), *cells) for cells, names in rows.items()])


def _rounds_table(rounds: dict[str, Tally], *, lines: bool) -> str:
    counts = {name: _by_place(tally.kernels, lines=lines) for name, tally in rounds.items()}
    total: Counter[str] = sum(counts.values(), Counter())
    rows = [
        (f"`{where}`", *(f"{each[where]:,}" for each in counts.values()))
        for where, _ in total.most_common()
    ]
    sums = ("all", *(f"{each.total():,}" for each in counts.values()))
    waits = ("waits", *(str(len(tally.waits)) for tally in rounds.values()))
    return _table((f"kernels of a round, {TASKS} tasks", *rounds), [*rows, sums, waits])


def _adapters(found: row_adapters.Found) -> tuple[str, str]:
    """Rounds whose tasks have adapters, and what adapters take."""
    head = ("adapters of the tasks", "kernels", "of them for adapters", "bytes to device", "waits",
            "peak, MiB")  # fmt: skip
    rows = [
        (
            name,
            f"{tally.launched:,}",
            f"{_by_place(tally.kernels, lines=False)['row_adapters.py _add']:,}",
            f"{tally.to_device_bytes:,}",
            str(len(tally.waits)),
            f"{tally.growth_bytes / _MIB:,.0f}",
        )
        for name, tally in found.rounds.items()
    ]
    size = found.loaded_bytes / row_adapters.FILES / _MIB
    return _table(head, rows), f"An adapter of rank {lora.RANK} takes {size:.1f} MiB."


def _by_place(kernels: Counter[Place], *, lines: bool) -> Counter[str]:
    counts: Counter[str] = Counter()
    for where, number in kernels.items():
        counts[where.short(line=lines)] += number
    return counts


def _waits_table(waits: Iterable[Wait]) -> str:
    """By operator, place and reason; `calls` are the kinds without their numbers."""
    seen: Counter[tuple[str, ...]] = Counter()
    for wait in waits:
        call = wait.call.split(",")[0].split(" by ")[0]
        seen[call, wait.op, f"`{wait.where.short(line=False)}`", wait.reason or "**none**"] += 1
    return _table(("waits", "call", "for", "in", "allowed, since"),
                  [(f"{times:,}", *key) for key, times in seen.items()])  # fmt: skip


def _range(tallies: Sequence[Tally], count: Callable[[Tally], int]) -> str:
    low, high = (choose(map(count, tallies)) for choose in (min, max))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    is_text = [
        title in {"call", "adapters of the tasks", "step of", "for", "in", "allowed, since"}
        for title in head
    ]
    is_text[0] = is_text[0] or head[0].startswith("kernels")
    lines = (head, ["---" if left else "--:" for left in is_text], *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
