"""The report: the JSON that is rewritten after each part, and the Markdown page made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from benchmarks.gpu_check import goals
from benchmarks.gpu_check.outcome import Outcome, Status
from benchmarks.gpu_check.parts import BY_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.record import Cell

NAME = "gpu-check"


@dataclass(frozen=True)
class Report:
    """A run of the check, finished or not."""

    #: `cuda:0`, or `cpu` for the rehearsal.
    device: str
    date_utc: str
    #: Revision of the checkout; empty where git does not tell.
    revision: str
    #: Seconds that the whole run may take, and has taken.
    budget_s: float
    took_s: float
    #: Steps of a picture where throughput is measured.
    steps: int
    outcomes: list[Outcome]


_JSON = TypeAdapter(Report)


def save(report: Report, out: Path) -> list[Path]:
    """Write both files into `out`; gives their paths."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{NAME}.json", out / f"{NAME}.md"]
    files[0].write_bytes(_JSON.dump_json(report, indent=2) + b"\n")
    files[1].write_text(markdown(report))
    return files


def load(path: Path) -> Report:
    """A saved report."""
    return _JSON.validate_json(path.read_bytes())


def markdown(report: Report) -> str:
    """The whole page."""
    sections = [_head(report), _summary(report), _goals(report)]
    sections += [_section(outcome) for outcome in report.outcomes]
    return "\n\n".join(sections) + "\n"


def _head(report: Report) -> str:
    what = "GPU check" if report.device != "cpu" else "GPU check, rehearsed on a CPU"
    machine = next((each.headline for each in report.outcomes if each.name == "environment"), "")
    lines = [f"# {what}", ""]
    if report.device == "cpu":
        lines += ["**A rehearsal: a small model on a CPU. Its numbers mean nothing.**", ""]
    lines += [
        machine or "The machine is not known.",
        "",
        f"{report.date_utc}, revision {report.revision or 'unknown'}.",
        f"The run took {report.took_s:.0f} s of {report.budget_s:.0f} s.",
    ]
    return "\n".join(lines)


def _summary(report: Report) -> str:
    counts = dict.fromkeys(Status, 0)
    for outcome in report.outcomes:
        counts[outcome.status] += 1
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    rows: list[dict[str, Cell]] = [
        {
            "part": f"[{BY_NAME[each.name].title}](#{_anchor(BY_NAME[each.name].title)})",
            "end": _shown_status(each.status),
            "s": round(each.seconds) if each.seconds else None,
            "finding": each.reason if _is_bad(each) else each.headline or each.reason,
        }
        for each in report.outcomes
    ]
    return f"## Summary\n\n{len(report.outcomes)} parts: {told}.\n\n{_table(rows)}"


def _goals(report: Report) -> str:
    rows: list[dict[str, Cell]] = [
        {
            "goal": goal.what,
            "wanted": f"≥ {goal.wanted:g} {goal.unit}",
            "found": None if goal.found is None else f"{goal.found:.3g} {goal.unit}",
            "verdict": goal.verdict,
            "from": goal.how,
        }
        for goal in goals.judge(report.outcomes, report.steps)
    ]
    lines = ["## Goals", ""]
    if report.device == "cpu":
        lines += ["For a GPU; a rehearsal's numbers stand here only to show the table.", ""]
    return "\n".join([*lines, _table(rows)])


def _section(outcome: Outcome) -> str:
    part = BY_NAME[outcome.name]
    lines = [f"## {part.title}", "", part.what, ""]
    ended = f"**{_shown_status(outcome.status)}**"
    if outcome.seconds:
        ended += f" after {outcome.seconds:.0f} s"
    lines.append(f"{ended}{f': {outcome.reason}' if outcome.reason else ''}.")
    if outcome.headline:
        lines += ["", outcome.headline]
    if outcome.rows:
        lines += ["", _table(outcome.rows)]
    if outcome.checks:
        lines += ["", "What had to hold:", ""]
        lines += [f"- {'yes' if each.holds else '**NO**'}: {each.what}" for each in outcome.checks]
    if outcome.notes:
        lines += ["", *(f"- {note}" for note in outcome.notes)]
    if outcome.log:
        log = outcome.log.replace("```", "'''")
        lines += ["", "The end of its log:", "", "```text", log, "```"]
    return "\n".join(lines)


def _is_bad(outcome: Outcome) -> bool:
    return outcome.status in (Status.FAILED, Status.KILLED, Status.NOT_REACHED)


def _shown_status(status: Status) -> str:
    return status.upper() if status in (Status.FAILED, Status.KILLED) else str(status)


def _table(rows: list[dict[str, Cell]]) -> str:
    """A Markdown table; the columns are those of all rows, in the order in which they come."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    used = [name for name in columns if any(row.get(name) is not None for row in rows)]
    lines = [
        "| " + " | ".join(name.replace("_", " ") for name in used) + " |",
        "|---" * len(used) + "|",
        *("| " + " | ".join(_cell(row.get(name)) for name in used) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _cell(value: Cell) -> str:
    if value is None:
        return "-"
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(shown.split()).replace("|", "\\|")


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    kept = "".join(char for char in title.lower() if char.isalnum() or char in " -")
    return kept.replace(" ", "-")
