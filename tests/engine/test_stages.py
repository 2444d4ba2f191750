"""What a job's control says of its stages in the engine, and of the calls that it shared."""

from __future__ import annotations

import time

import pytest

from tests.engine.attempts import small
from tests.engine.jobs import Rounds, job
from worker.engine.jobs.stage_log import StageLog
from worker.engine.runner import Runner
from worker.job_control import Control, JobStopped, Peer, Stage, Stop

STEPS = 6


def denoise_of(control: Control) -> Stage:
    (found,) = [each for each in control.engine_stages() if each.name == "denoise"]
    return found


def denoise_calls(control: Control) -> int:
    return sum(each.unet_calls for each in control.engine_stages())


def test_stages_follow_each_other(rounds: Rounds) -> None:
    """Load, encode, denoise and decode have no gap between them; the result has their lengths."""
    control, began_s = Control(), time.perf_counter()
    result = Rounds(model=rounds.runner.model).result(job(), control)
    stages = control.engine_stages()
    assert [each.name for each in stages] == ["load", "encode", "denoise", "decode"]
    assert [each.ended_s for each in stages[:-1]] == [each.began_s for each in stages[1:]]
    assert began_s <= stages[0].began_s
    assert stages[-1].ended_s <= time.perf_counter()
    lengths = [each.ended_s - each.began_s for each in stages]
    timing = result.timing
    measured = [timing.load_s, timing.encode_s, timing.denoise_s, timing.decode_s]
    assert lengths == pytest.approx(measured)
    assert control.engine_stages() == stages


def test_a_loaded_model_is_no_stage(rounds: Rounds) -> None:
    """A job that did not wait for its model has no stage `load`."""
    together = Rounds(model=rounds.runner.model)
    together.result(job())
    control = Control()
    together.result(job(), control)
    assert [each.name for each in control.engine_stages()] == ["encode", "denoise", "decode"]


def test_a_stopped_job_has_the_stages_so_far(rounds: Rounds) -> None:
    """A job that is stopped while it is denoised has no stage after that."""
    together, control = Rounds(model=rounds.runner.model), Control()
    future = together.submit(job(num_inference_steps=STEPS), control)
    assert control.engine_stages() == []
    for _ in range(3):
        together.batch.step()
    control.request(Stop.CANCELLED)
    together.run()
    assert isinstance(future.exception(timeout=0), JobStopped)
    assert [each.name for each in control.engine_stages()] == ["load", "encode", "denoise"]
    assert denoise_of(control).unet_calls == 3


@pytest.mark.parametrize("fails", ["stopped", "in its last stage"])
def test_stages_end_when_the_job_ends(
    rounds: Rounds, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last stage of a job without a result has ended before whoever waits for it goes on."""
    together, control = Rounds(model=rounds.runner.model), Control()
    future, seen = together.submit(job(num_inference_steps=STEPS), control), []
    future.add_done_callback(lambda _: seen.append(time.perf_counter()))
    together.batch.step()
    if fails == "stopped":
        control.request(Stop.CANCELLED)
    else:
        monkeypatch.setattr(Runner, "finish", lambda *_: 1 / 0)
    together.run()
    assert future.exception(timeout=0) is not None
    last = control.engine_stages()[-1]
    assert last.name == ("denoise" if fails == "stopped" else "decode")
    assert last.began_s <= last.ended_s <= seen[0]


def test_the_first_end_of_a_job_counts() -> None:
    """A job that is failed again, as by a round that raises, has ended before."""
    log = StageLog(1)
    log.end()
    first_s = log.ended_s
    log.end()
    assert log.ended_s == first_s


@pytest.mark.parametrize("rows", [64, 4])
def test_shared_calls_are_counted(rounds: Rounds, rows: int) -> None:
    """Each job knows how many calls it shared with each other, by id and `traceparent`.

    The third job joins half-way. With room for two jobs in a call not all calls are shared by all.
    What one has shared with another, the other has shared with it.
    """
    together = Rounds(model=rounds.runner.model, max_batch_rows=rows)
    controls = [Control(traceparent=f"span {number}") for number in range(3)]
    wanted = [small(id=f"{number}", sag_scale=0.0) for number in range(3)]
    futures = [together.submit(*each) for each in zip(wanted[:2], controls[:2], strict=True)]
    while denoise_calls(controls[0]) < STEPS // 2:
        together.batch.step()
    futures.append(together.submit(wanted[2], controls[2]))
    together.run()
    peers = [Peer(f"{number}", f"span {number}") for number in range(3)]
    shared = [denoise_of(control).shared for control in controls]
    assert [each.get(peer, 0) for each, peer in zip(shared, peers, strict=True)] == [0, 0, 0]
    assert shared[0][peers[1]] == shared[1][peers[0]]
    assert shared[0].get(peers[2], 0) == shared[2].get(peers[0], 0)
    assert shared[1].get(peers[2], 0) == shared[2].get(peers[1], 0)
    if rows == 64:
        assert shared[0] == {peers[1]: STEPS, peers[2]: STEPS // 2}
    for each, future in zip(shared, futures, strict=True):
        assert future.result(timeout=0).batch == round(1 + sum(each.values()) / STEPS, 2)


def test_counting_does_not_grow_with_the_calls(rounds: Rounds) -> None:
    """Calls of the same jobs are counted in one place, whatever their number."""
    together, controls = Rounds(model=rounds.runner.model), [Control(), Control(), Control()]
    for number, control in enumerate(controls):
        together.submit(small(id=f"{number}", num_inference_steps=STEPS), control)
    together.run()
    runs = {id(run) for each in controls for run in each.engine_stages.__self__.calls}  # type: ignore[attr-defined]
    assert len(runs) == 1
    assert {sum(denoise_of(each).shared.values()) for each in controls} == {4 * STEPS}
