"""The sides of a benchmark: each in a process of its own, which ends with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from benchmarks import process, record, report
from benchmarks.host_time import HostTime
from benchmarks.process import SideError
from tests.benchmarks.counter import Counter, Unpicklable
from worker.engine.batch import Batch

ROOT = Path(__file__).resolve().parents[2]
SAVED = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
#: Commands that compare sides.
COMPARING = ("throughput", "latency", "daemon", "baseline.compare", "second_guidance.rows")


def test_a_side_lives_in_a_process_of_its_own() -> None:
    """A side's object is made and called in a process of its own, and keeps its state there."""
    with process.start("a", Unpicklable, 1) as one, process.start("b", Counter, number=10) as other:
        assert len({os.getpid(), one.remote(Counter.pid)(), other.remote(Counter.pid)()}) == 3
        assert [one.remote(Counter.add)(each) for each in (1, 1)] == [2, 3]
        assert other.remote(Counter.add)(more=5) == 15


def test_an_error_of_a_side_reaches_the_parent() -> None:
    """An error of a side is raised in the parent with its name and traceback; the side lives on."""
    with process.start("the engine", Counter, 1) as side:
        with pytest.raises(SideError, match=r"the engine failed:(?s:.)*no picture today"):
            side.remote(Counter.fail)()
        assert side.remote(Counter.add)(1) == 2
    with (
        pytest.raises(SideError, match=r"the engine failed:(?s:.)*missing 1 required"),
        process.start("the engine", Counter),  # type: ignore[call-arg]  # the error
    ):
        pytest.fail("it was made")


def test_the_end_of_a_sides_process_is_reported() -> None:
    """A call whose process is killed raises, and names the status; so does each later call."""
    with process.start("the engine", Counter, 1) as side:
        for call in (Counter.die, Counter.pid):
            with pytest.raises(SideError, match="the process of the engine ended: status -9"):
                side.remote(call)()


def test_a_sides_process_ends_with_its_block() -> None:
    """A side's process ends with its block, whether the block ends well or with an error."""
    pids = []
    with suppress(KeyboardInterrupt), process.start("a", Counter, 1) as side:
        pids.append(side.remote(Counter.pid)())
        raise KeyboardInterrupt
    pids.append(process.once("b", os.getpid))
    assert not any(map(psutil.pid_exists, pids))


def test_an_idle_sides_process_uses_no_processor() -> None:
    """An idle side uses no processor time while another side starts, computes and ends."""
    with process.start("a", Counter, 1) as side:
        child = psutil.Process(side.remote(Counter.pid)())
        before = child.cpu_times()
        process.once("b", os.getpid)
        after = child.cpu_times()
        assert after.user + after.system - before.user - before.system < 0.05


def test_the_parent_of_sides_loads_no_torch() -> None:
    """The parent of the sides loads no torch, whose threads belong to the sides."""
    names = ", ".join(f"benchmarks.{each}" for each in COMPARING)
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_host_time_is_that_of_rounds_without_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host time of a round is its time outside the UNet, the decoder and the text encoder."""
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now_s)

    def takes(seconds: float) -> None:
        clock.now_s += seconds

    names = {"forward": lambda: takes(10), "decode": lambda: takes(5)}
    parts = ("unet", "vae", "text_encoder")
    pipeline = SimpleNamespace(**{part: SimpleNamespace(**names) for part in parts})

    def step(batch: Batch) -> bool:
        takes(3)
        pipeline.unet.forward()
        return True

    monkeypatch.setattr(Batch, "step", step)
    found = HostTime()
    found.watch(pipeline)
    found.begin()
    assert found.ms_a_round() is None
    batch = Batch(SimpleNamespace(), takes)  # type: ignore[arg-type]  # is not asked
    batch.step()
    batch.step()
    assert found.ms_a_round() == pytest.approx(3000)


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_saved_results_can_be_reported(path: Path) -> None:
    """Every saved result can be reported, also one that an earlier version saved."""
    result = record.load(path)
    assert result.headline in report.markdown(result)


@pytest.mark.slow
def test_throughput_measures_both_sides(tmp_path: Path) -> None:
    """The command leaves a result with the speeds, their ratio and the host time, and a plot."""
    command = [
        sys.executable, "-m", "benchmarks", "throughput", "--tasks", "2", "--repeats", "1",
        "--steps", "2", "--samplers", "euler", "ddim", "--dtype", "float32", "--out", str(tmp_path),
    ]  # fmt: skip
    found = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    result = record.load(tmp_path / "throughput.json")
    (row,) = result.rows
    for column in ("engine_images_per_s", "loop_images_per_s", "ratio", "host_ms_a_round"):
        value = row[column]
        assert isinstance(value, float)
        assert value > 0
    assert result.options["samplers"] == "euler ddim"
    assert result.options["dtype"] == "float32 (float32)"
    assert result.headline in found.stdout
    assert (tmp_path / "throughput.png").stat().st_size > 0


@pytest.mark.slow
def test_an_urgent_arrival_is_counted_in_calls(tmp_path: Path) -> None:
    """Priority 0 is in call 1 after its arrival, and needs no more calls than its own at its size.

    The command leaves a result with the counts and the seconds of the daemon, and a plot.
    """
    command = [
        sys.executable, "-m", "benchmarks", "latency", "--urgent", "--slots", "3", "--rows", "2",
        "--repeats", "2", "--steps", "3", "--dtype", "float32", "--out", str(tmp_path),
    ]  # fmt: skip
    found = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    result = record.load(tmp_path / "latency-urgent.json")
    assert result.headline in found.stdout
    urgent, usual, urgent_of_other_size, _ = result.rows
    for row in (urgent, urgent_of_other_size):
        assert row["calls_to_first_call_high"] == 1
        assert row["calls_to_first_step_high"] == 2
    assert urgent["calls_to_picture_high"] == urgent["calls_own_calls"] == 6
    for row in (urgent, usual):
        assert isinstance(row["first_progress_s"], float)
        assert row["first_progress_s"] > 0
    assert (tmp_path / "latency-urgent.png").stat().st_size > 0
