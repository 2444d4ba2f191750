"""The page is made from the JSON alone, and says of each part and goal what is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.gpu_check import goals, page
from benchmarks.gpu_check.outcome import Check, Finding, Outcome, Status, load
from benchmarks.gpu_check.parts import PARTS, chosen

if TYPE_CHECKING:
    from pathlib import Path

REPORT = page.Report(
    device="cuda:0",
    date_utc="2026-11-30T06:00:00+00:00",
    revision="abc",
    budget_s=470,
    took_s=300,
    steps=10,
    outcomes=[
        Outcome("environment", Status.PASSED, 9.6, headline="NVIDIA H200 · some processor"),
        Outcome(
            "throughput",
            Status.FAILED,
            40,
            reason="broken | badly",
            rows=[{"px": 512, "speed": 1.23456}, {"px": 1024, "speed": None, "more": "a|b"}],
            notes=["Upstream's loop is slow."],
            checks=[Check("it holds", holds=True), Check("it does not", holds=False)],
            numbers={
                "eager_times_the_loop_at_16": 2.0,
                "eager_pictures_per_s": 10.0,
                "graphs_times_the_loop_at_16": 3.0,
                "graphs_pictures_per_s": 12.0,
                "peak_tflop_per_s": 720.0,
                "tflop_a_row": 0.8,
                "share_percent_at_16": 30.0,
                "share_percent_at_64": 36.0,
            },
            log="```\nthe end of the log",
        ),
        Outcome("daemon", Status.NOT_REACHED, reason="3 s were left, it needs 45 s"),
    ],
)


def test_the_page_has_everything(tmp_path: Path) -> None:
    """A saved report makes the same page; each part has a line above and a section below."""
    file, markdown = page.save(REPORT, tmp_path)
    text = markdown.read_text()
    assert page.markdown(page.load(file)) == text
    assert text.startswith("# GPU check\n\nNVIDIA H200")
    assert "3 parts: 1 passed, 1 failed, 1 not reached." in text
    assert "| FAILED | 40 | broken \\| badly |" in text
    assert "| px | speed | more |" in text
    assert "| 512 | 1.235 | - |" in text
    assert "- **NO**: it does not" in text
    assert "**not reached**: 3 s were left, it needs 45 s." in text
    assert "'''\nthe end of the log" in text
    for title in ("Summary", "Goals", "Environment", "Throughput against upstream's loop"):
        assert f"\n## {title}\n" in text


def test_goals() -> None:
    """A goal counts the best mode; the engine's share is its rows a second times a row's work."""
    loop, engine, calls, daemon = goals.judge(REPORT.outcomes, REPORT.steps)
    assert (loop.found, loop.verdict) == (3.0, "reached")
    assert engine.found == 100 * 12 * 10 * 3 * 0.8 / 720
    assert engine.verdict == "reached"
    assert (calls.found, calls.verdict) == (36.0, "reached")
    assert (daemon.found, daemon.verdict) == (None, "no number")


def test_a_run_without_numbers_has_a_page() -> None:
    """A run without numbers has a page, also one that was cut off after its first part."""
    cut = page.Report("cpu", "2026", "", 300, 9, 2, [Outcome("weights", Status.KILLED, reason="x")])
    text = page.markdown(cut)
    assert text.startswith("# GPU check, rehearsed on a CPU")
    assert "The machine is not known." in text
    assert text.count("| no number |") == 4


def test_a_finding_is_on_disk_at_once(tmp_path: Path) -> None:
    """What a part has found can be read while it runs; until it ends it counts as killed."""
    found = Finding("rows", tmp_path / "rows.json")
    found.row(rows=3, seconds=1.23456789)
    found.number("most", 3.00001)
    found.check("it fits", holds=False)
    there = load(tmp_path / "rows.json")
    assert there.status is Status.KILLED
    assert there.rows == [{"rows": 3, "seconds": 1.235}]
    assert there.numbers == {"most": 3.0}
    assert found.failures == ["it fits"]
    found.end(Status.PASSED)
    assert load(tmp_path / "rows.json").status is Status.PASSED


def test_chosen_parts_come_with_what_they_need() -> None:
    """Chosen parts come in order, with the environment, and weights where a part needs them."""
    assert [part.name for part in chosen(["parity"])] == ["environment", "parity"]
    names = [part.name for part in chosen(["rows", "daemon"])]
    assert names == ["environment", "weights", "daemon", "rows"]
    assert chosen([]) == list(PARTS)


def test_parts_fit_into_eight_minutes() -> None:
    """What the parts need at least is less than the whole; names and titles are all different."""
    assert sum(part.needs_s for part in PARTS) < 460
    assert all(part.needs_s < part.limit_s for part in PARTS)
    assert len({part.name for part in PARTS}) == len({part.title for part in PARTS}) == len(PARTS)
