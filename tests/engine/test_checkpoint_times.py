"""When a checkpoint is saved, in which order, and what happens to the job where that fails."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.attempts import (
    assert_same,
    checkpoints,
    drained,
    keeping,
    new_batch,
    resumed,
    small,
    stop,
)
from tests.engine.jobs import SPEC, Rounds
from worker.engine import batch_scheduler, checkpoint, safetensors_io
from worker.engine.engine import Engine
from worker.job_control import Control, JobStopped, Stop

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from worker.engine.jobs.job import JobResult

STEPS = 6


@pytest.mark.parametrize("every", [1, 2, 4, STEPS, 100])
def test_when_it_is_time_for_one(rounds: Rounds, every: int) -> None:
    """At each multiple of `checkpoint_every` but the last step, after the step is reported."""
    seen: list[tuple[str, int]] = []
    control = Control(
        on_step=lambda step: seen.append(("step", step.step)),
        on_checkpoint=lambda step, _: seen.append(("checkpoint", step)),
    )
    rounds.result(small(checkpoint_every=every), control)
    assert seen == [
        (what, step)
        for step in range(1, STEPS + 1)
        for what in ("step", "checkpoint")
        if what == "step" or (step % every == 0 and step < STEPS)
    ]


def test_none_unless_asked(rounds: Rounds) -> None:
    """Without `checkpoint_every` a job saves nothing, drained or not."""
    left: dict[int, bytes] = {}
    assert rounds.result(small(), keeping(left)).resumed_from_step is None
    control = keeping(left)
    stopped = stop(new_batch(rounds), small(), control, Stop.DRAINED)
    assert isinstance(stopped.exception(timeout=0), JobStopped)
    assert not left


@pytest.mark.parametrize("reason", list(Stop))
def test_only_a_drain_leaves_one(rounds: Rounds, reason: Stop) -> None:
    """A job that is cancelled, expired or superseded saves no checkpoint."""
    left: dict[int, bytes] = {}
    wanted = small(checkpoint_every=100)
    stopped = stop(new_batch(rounds), wanted, keeping(left), reason)
    assert isinstance(stopped.exception(timeout=0), JobStopped)
    assert list(left) == ([2] if reason is Stop.DRAINED else [])


@pytest.mark.parametrize(("every", "steps"), [(2, [2]), (1, [1, 2]), (3, [2])])
def test_a_drain_leaves_what_is_new(rounds: Rounds, every: int, steps: list[int]) -> None:
    """A drain does not save a step that is saved already."""
    seen: list[int] = []
    control = Control(on_checkpoint=lambda step, _: seen.append(step))
    wanted = small(checkpoint_every=every)
    stop(new_batch(rounds), wanted, control, Stop.DRAINED)
    assert seen == steps


@pytest.mark.parametrize("after", [0, 1])
def test_a_drain_before_a_step_leaves_none(rounds: Rounds, after: int) -> None:
    """A job that waits, or that resumed and has done no step since, saves none."""
    wanted = small()
    _, left = checkpoints(rounds, wanted)
    newer: dict[int, bytes] = {}
    again = dataclasses.replace(wanted, checkpoint=left[3], checkpoint_every=1)
    future = stop(new_batch(rounds), again, keeping(newer), Stop.DRAINED, after)
    stopped = future.exception(timeout=0)
    assert isinstance(stopped, JobStopped)
    assert (stopped.step, newer) == (3 if after else 0, {})


def test_a_drain_after_the_last_step(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is drained when only its decoding is left needs only that in the next attempt."""
    wanted = small(num_inference_steps=2)
    with monkeypatch.context() as patched:
        patched.setattr(batch_scheduler, "decode_due", lambda *_, **__: False)
        _, left = drained(new_batch(rounds), wanted, after=6)
    again = resumed(new_batch(rounds), wanted, left)
    assert again.resumed_from_step == 2
    assert_same(again, rounds.result(wanted))


def test_a_drain_saves_before_the_job_ends(rounds: Rounds) -> None:
    """The caller has the checkpoint before the future is done; it is written on the side thread."""
    later: list[Callable[[], object]] = []
    batch = new_batch(rounds, side_executor=lambda call, *args: later.append(partial(call, *args)))
    futures: list[Future[JobResult]] = []
    done: list[bool] = []
    control = Control(on_checkpoint=lambda *_: done.append(futures[0].done()))
    wanted = small(checkpoint_every=100)
    futures.append(stop(batch, wanted, control, Stop.DRAINED))
    assert not batch.batch.is_busy
    assert not done
    assert not futures[0].done()
    for call in later:
        call()
    assert done == [False]
    assert isinstance(futures[0].exception(timeout=0), JobStopped)


def test_in_the_engine_itself(rounds: Rounds) -> None:
    """So with the engine's two threads."""
    engine = Engine(
        {"default": SPEC},
        "cpu",
        "none",
        max_batch_rows=64,
        loader=lambda *_, **__: rounds.runner.model,
    )
    wrote: list[tuple[int, str]] = []
    control = Control(
        on_step=lambda step: control.request(Stop.DRAINED) if step.step == 2 else None,
        on_checkpoint=lambda step, _: wrote.append((step, threading.current_thread().name)),
    )
    future = engine.submit(small(num_inference_steps=50, checkpoint_every=1000), control)
    stopped = future.exception(timeout=60)
    assert isinstance(stopped, JobStopped)
    assert wrote == [(stopped.step, "engine-side_0")]
    engine.close()


@pytest.mark.parametrize("broken", ["on_checkpoint", "pack", "capture"])
def test_a_checkpoint_never_fails_a_job(
    rounds: Rounds,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    """Whatever fails in saving one costs a warning, and the job ends as it would have."""

    def fail(*_: object) -> None:
        raise LookupError("no room")

    control = Control(on_checkpoint=fail if broken == "on_checkpoint" else lambda *_: None)
    if broken != "on_checkpoint":
        monkeypatch.setattr(safetensors_io if broken == "pack" else checkpoint, broken, fail)
    whole = rounds.result(small())
    wanted = small(checkpoint_every=2)
    assert_same(new_batch(rounds).result(wanted, control), whole)
    warned = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warned) == 2
    assert all("no room" in each for each in warned)
    stopped = stop(new_batch(rounds), wanted, control, Stop.DRAINED).exception(timeout=0)
    assert isinstance(stopped, JobStopped)
    assert stopped.reason is Stop.DRAINED


def test_a_drain_makes_up_for_one_that_was_lost(rounds: Rounds) -> None:
    """One that its caller could not store does not count as saved."""
    seen: list[int] = []

    def keep(step: int, _: bytes) -> None:
        seen.append(step)
        if len(seen) == 1:
            raise LookupError("away")

    wanted = small(checkpoint_every=2)
    stop(new_batch(rounds), wanted, Control(on_checkpoint=keep), Stop.DRAINED)
    assert seen == [2, 2]


def test_what_a_resumed_job_reports(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps continue, the time left is by the steps of this attempt, checkpoints continue."""
    wanted = small()
    _, left = checkpoints(rounds, wanted)
    batch = new_batch(rounds)
    clock, usual = itertools.count(0, 10), batch.pipe.unet.forward
    now_s = [next(clock)]

    def forward(*args: Any, **kwargs: Any) -> Any:
        now_s[0] = next(clock)
        return usual(*args, **kwargs)

    monkeypatch.setattr(batch.pipe.unet, "forward", forward)
    monkeypatch.setattr("time.perf_counter", lambda: now_s[0])
    seen: list[tuple[int, int, float]] = []
    newer: dict[int, bytes] = {}
    control = keeping(newer)
    control.on_step = lambda step: seen.append((step.step, step.total_steps, step.eta_s))
    again = dataclasses.replace(wanted, checkpoint=left[3], checkpoint_every=2)
    result = batch.result(again, control)
    assert seen == [(4, STEPS, 40.0), (5, STEPS, 20.0), (6, STEPS, 0.0)]
    assert list(newer) == [4]
    assert result.resumed_from_step == 3


def test_no_preview_of_what_is_not_known(rounds: Rounds) -> None:
    """Where the first image was done before resuming, there is no preview."""
    narrow = Rounds(model=rounds.runner.model, max_batch_rows=2)
    wanted = small(num_images_per_prompt=2, num_inference_steps=3, preview_every=1)
    _, left = drained(new_batch(narrow), wanted, after=6 + 2)
    seen: list[tuple[int, bool]] = []
    control = Control(on_step=lambda step: seen.append((step.step, step.preview is not None)))
    new_batch(narrow).result(dataclasses.replace(wanted, checkpoint=left), control)
    assert seen == [(2, False), (3, False)]
