"""The findings of a run as tables, for a terminal and Markdown, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tests.chaos import invariants, other_laws, others, stream_laws
from tests.chaos.fault_schedule import KILLS, FaultKind

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from tests.chaos.findings import Findings

#: Violations of a law that a table lists; the JSON lists all.
SHOWN = 5


@dataclass(frozen=True)
class Page:
    """One table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def show(findings: Findings, console: Console) -> None:
    """Print the tables."""
    for page in pages(findings):
        table = Table(title=page.title, title_justify="left", title_style="bold")
        for number, column in enumerate(page.columns):
            table.add_column(column, justify="right" if number and column != "how" else "left")
        for row in page.rows:
            table.add_row(*row)
        console.print(table, markup=False)


def save(findings: Findings, folder: Path) -> None:
    """Write `chaos.json` and `chaos.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data(findings), indent=1, ensure_ascii=False)
    (folder / "chaos.json").write_text(text + "\n")
    (folder / "chaos.md").write_text("\n\n".join(map(_markdown, pages(findings))) + "\n")


def is_green(findings: Findings) -> bool:
    """Whether every law held and every machine ended after SIGTERM."""
    return not findings.violations and not findings.stuck


def pages(findings: Findings) -> list[Page]:
    """All tables, the verdict first."""
    made = [_verdict(findings), _tasks(findings), _faults(findings)]
    if findings.plan.others:
        rows = ((name, str(count)) for name, count in _others(findings).items())
        made.append(Page("Others, which waited below these", ("what", "tasks"), tuple(rows)))
    if findings.violations:
        made.append(_violations(findings))
    return made


def data(findings: Findings) -> dict[str, Any]:
    """The findings, with the streams of the tasks that broke a law."""
    plan = asdict(findings.plan)
    return {
        "verdict": "green" if is_green(findings) else "red",
        "plan": plan | {"kinds": sorted(findings.plan.kinds)},
        "duration_s": round(findings.duration_s, 1),
        "tasks": len(findings.tasks),
        "ends": dict(_ends(findings)),
        "lost": sorted(findings.breaches(stream_laws.every_task_ends)),
        "doubled": sorted(findings.breaches(*invariants.DOUBLING)),
        "violations": [
            asdict(each) | {"stream": _trail(findings, each.what)} for each in findings.violations
        ],
        "others": _others(findings),
        "faults": {kind: count for kind, count in _applied(findings).items() if count},
        "faults_skipped": findings.skipped,
        "recovery_s": {
            kind: {
                "tasks": len(each.times_s),
                "p50": each.percentile_s(0.5),
                "p99": each.percentile_s(0.99),
                "max": max(each.times_s, default=None),
                "never": each.never,
            }
            for kind, each in findings.recoveries.items()
        },
        "kills": len(_spacing(findings)),
        "loading_to_kill_s": sorted(round(each, 2) for each in _spacing(findings)),
        "unexplained_takeovers": dict(findings.evidence.takeovers),
        "supervisors_that_failed": findings.unexpected_ends,
        "machines_that_did_not_end": list(findings.stuck),
        "tracebacks": dict(sorted(findings.tracebacks.items())),
    }


def _verdict(findings: Findings) -> Page:
    plan, spacing = findings.plan, _spacing(findings)
    spaced = f"median {median(spacing):.1f} s, least {min(spacing):.1f} s" if spacing else "-"
    rows = [
        ("verdict", "green" if is_green(findings) else "RED"),
        ("seed", str(plan.seed)),
        ("turned off", plan.off or "nothing"),
        ("duration", f"{findings.duration_s:.0f} s"),
        ("machines", str(plan.machines)),
        ("Redis", "primary, replicas and sentinels" if plan.sentinel else "one"),
        ("tasks", str(len(findings.tasks))),
        ("lost", str(len(findings.breaches(stream_laws.every_task_ends)))),
        ("doubled", str(len(findings.breaches(*invariants.DOUBLING)))),
        ("violations", str(len(findings.violations))),
        ("faults", f"{len(findings.applied)}, {findings.skipped} skipped"),
        ("kills after the model was loaded", spaced),
        ("unexplained takeovers", str(len(findings.evidence.takeovers))),
        ("supervisors that failed", str(findings.unexpected_ends)),
        ("machines that did not end", str(len(findings.stuck))),
        ("tracebacks in the logs", str(sum(findings.tracebacks.values()))),
    ]
    return Page("Chaos", ("what", "value"), tuple(rows))


def _tasks(findings: Findings) -> Page:
    ends = _ends(findings)
    ways = Counter(str(submission.sender) for submission in findings.tasks.values())
    rows = [(end, str(count)) for end, count in sorted(ends.items())]
    rows += [(f"by {way}", str(count)) for way, count in sorted(ways.items())]
    return Page("Tasks", ("end", "tasks"), tuple(rows))


def _others(findings: Findings) -> dict[str, int]:
    """Counts of the tasks that waited below those of the schedule."""
    found = findings.evidence.others
    deleted = (each for fault in findings.applied for each in fault.tasks)
    return {
        "submitted": findings.plan.others,
        "waiting at the end": sum(each.status == "queued" for each in found.values()),
        "run in free slots": sum(each.has_ended for each in found.values()),
        "messages deleted": sum(each.startswith(others.PREFIX) for each in deleted),
        "with more than one message": sum(each.messages > 1 for each in found.values()),
        "lost": len(findings.breaches(other_laws.others_are_kept)),
        "doubled": len(findings.breaches(other_laws.others_end_once)),
    }


def _faults(findings: Findings) -> Page:
    rows = []
    for kind, count in _applied(findings).items():
        if not count:
            continue
        each = findings.recoveries.get(kind)
        times = ["-"] * 3
        if each is not None and each.times_s:
            shares = (each.percentile_s(0.5), each.percentile_s(0.99), max(each.times_s))
            times = [f"{share:.2f}" for share in shares if share is not None]
        hit, never = (len(each.times_s) + each.never, each.never) if each else (0, 0)
        rows.append((kind.value, str(count), str(hit), *times, str(never)))
    columns = ("fault", "times", "tasks hit", "p50 s", "p99 s", "max s", "never")
    return Page("Faults, and the time until the tasks that they hit went on", columns, tuple(rows))


def _violations(findings: Findings) -> Page:
    """Each broken law, the number of violations, and some examples."""
    rows: list[tuple[str, str, str]] = []
    for law, count in Counter(each.law for each in findings.violations).most_common():
        broken = [each for each in findings.violations if each.law == law]
        rows.append((law, f"{count} times", ""))
        rows += [("", each.what, each.how[:200]) for each in broken[:SHOWN]]
    return Page("Violations", ("law", "of", "how"), tuple(rows))


def _ends(findings: Findings) -> Counter[str]:
    ends = (findings.evidence.end(task_id) for task_id in findings.tasks)
    return Counter(end.type if end is not None else "none" for end in ends)


def _applied(findings: Findings) -> dict[FaultKind, int]:
    counts = Counter(each.fault.kind for each in findings.applied)
    return {kind: counts[kind] for kind in FaultKind}


def _spacing(findings: Findings) -> list[float]:
    """Seconds from the first claim of each killed process to its kill."""
    return [
        each.after_loading_s
        for each in findings.applied
        if each.fault.kind in KILLS and each.after_loading_s is not None
    ]


def _trail(findings: Findings, task_id: str) -> list[str]:
    return [
        f"{event.seq} {event.type} attempt {event.attempt} {event.worker or ''}".strip()
        for event in findings.evidence.events_of(task_id)
    ]


def _markdown(page: Page) -> str:
    lines = [f"### {page.title}", "", f"| {' | '.join(page.columns)} |"]
    lines.append("|" + "---|" * len(page.columns))
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in page.rows]
    return "\n".join(lines)
