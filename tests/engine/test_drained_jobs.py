"""A job that is drained after any call resumes from its checkpoint, with the same bits."""

from __future__ import annotations

import dataclasses

import pytest

from tests.engine.attempts import assert_same, drained, new_batch, resumed, small
from tests.engine.cases import slow
from tests.engine.jobs import Rounds


@pytest.mark.parametrize(("name", "steps"), [(None, 2), *slow((None, 3), ("heun", 3), ("pndm", 3))])
def test_drained_after_any_call(rounds: Rounds, name: str | None, steps: int) -> None:
    """A job that is drained after any UNet call, in the middle of an evaluation or step, resumes.

    Heun evaluates the UNet twice in each step, PNDM in its first.
    """
    wanted = small(num_inference_steps=steps, scheduler=name)
    whole, after, ends = rounds.result(wanted), 0, []
    while True:
        stopped, left = drained(new_batch(rounds), wanted, after)
        if stopped is None:
            break
        ends.append(stopped.step)
        again = resumed(new_batch(rounds), wanted, left)
        assert again.resumed_from_step == (stopped.step or None)
        assert_same(again, whole)
        after += 1
    assert ends == sorted(ends)
    assert set(ends) == set(range(steps))


@pytest.mark.parametrize(
    ("calls", "steps"), [((15,), {1}), *slow(((11, 14, 15, 19), {None, 1, 2}))]
)
def test_drained_between_its_images(
    rounds: Rounds, calls: tuple[int, ...], steps: set[int | None]
) -> None:
    """Where one image is ahead of another, each resumes from its own evaluation."""
    wanted = small(num_inference_steps=3, num_images_per_prompt=2, scheduler="heun")
    narrow = Rounds(model=rounds.runner.model, max_batch_rows=2)
    whole, seen = narrow.result(wanted), set()
    for after in calls:
        stopped, left = drained(new_batch(narrow), wanted, after)
        assert stopped is not None
        again = resumed(new_batch(narrow), wanted, left)
        assert_same(again, whole)
        seen.add(again.resumed_from_step)
    assert seen == steps


def test_a_resume_of_a_resume(rounds: Rounds) -> None:
    """A job that is drained after each step ends as the undisturbed one."""
    wanted = small(scheduler="dpmpp_2m_sde", num_inference_steps=4)
    whole, left, at = rounds.result(wanted), None, []
    while True:
        stopped, newer = drained(
            new_batch(rounds), dataclasses.replace(wanted, checkpoint=left), after=3
        )
        if stopped is None:
            break
        at.append(stopped.step)
        left = newer
    assert at == [1, 2, 3]
    assert_same(resumed(new_batch(rounds), wanted, left), whole)
