"""Checkpoints: a job goes on where an earlier attempt was, and nobody sees it in the picture."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import diffusers
import pytest
import torch

from tests.engine.attempts import assert_same, checkpoints, company, drained, resumed, small
from tests.engine.jobs import SPEC, Rounds, latents_of
from worker.engine import checkpoint, safetensors_io, samplers

STEPS = 6
PROMPTS = ("a large red star on a blue background", "a small green circle")
#: Evaluates the network twice in each step, and in its first.
STAGED = ("heun", "pndm")
GIVEN = safetensors_io.write(torch.linspace(-2, 2, 256).view(4, 8, 8))


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_with_every_sampler(rounds: Rounds, name: str) -> None:
    """From the first step, the middle or the last but one: the undisturbed picture, to the bit.

    The checkpoints are written when the job is long past them, so nothing in them may change. The
    last holds a generator, and no more than the latents of five pictures.
    """
    wanted = small(scheduler=name)
    whole, left = checkpoints(rounds, wanted)
    assert list(left) == list(range(1, STEPS))
    held = safetensors_io.unpack(left[STEPS - 1])[1].values()
    assert sum(each.nbytes for each in held) < 5056 + 5 * latents_of(whole).nbytes + 64
    for step in (1, 3, STEPS - 1):
        again = resumed(company(rounds), wanted, left[step])
        assert again.resumed_from_step == step
        assert_same(again, whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduler": None},
        {"scheduler": "ddim", "eta": 0.7},
        {"scheduler": "tcd", "eta": 0.7},
        {"sag_scale": 0.0, "scheduler": "pndm"},
        {"guidance_scale": 1.0, "scheduler": "unipc"},
        {"guidance_scale": 1.0, "sag_scale": 0.0, "scheduler": "euler_a"},
        {"prompts": PROMPTS, "num_images_per_prompt": 2, "scheduler": "dpmpp_2m_sde"},
        {"prompts": PROMPTS, "num_images_per_prompt": 2, "scheduler": "heun", "height": 48},
        {"preview_every": 1, "scheduler": "lms"},
        {"latents": GIVEN, "scheduler": "deis"},
    ],
    ids=lambda changes: ",".join(f"{name}={value!s:.9}" for name, value in changes.items()),
)
def test_with_every_kind_of_job(rounds: Rounds, changes: dict[str, Any]) -> None:
    """So it is with `eta`, without either guidance, with many pictures, and with given latents."""
    wanted = small(num_inference_steps=4, **changes)
    whole = rounds.result(wanted)
    _, left = checkpoints(rounds, wanted)
    for step in (1, 3):
        again = resumed(company(rounds), wanted, left[step])
        assert again.resumed_from_step == step
        assert_same(again, whole)


def test_pictures_are_the_same_files(rounds: Rounds) -> None:
    """So are the pixels, not only the latents."""
    wanted = small(output_type="png")
    whole = rounds.result(wanted)
    again = resumed(company(rounds), wanted, checkpoints(rounds, wanted)[1][4])
    assert again.pictures[0].pixels.tobytes() == whole.pictures[0].pixels.tobytes()


@pytest.mark.parametrize("name", [None, *STAGED])
def test_drained_after_any_call(rounds: Rounds, name: str | None) -> None:
    """A job that is drained after any UNet call, half-way in an evaluation or a step, goes on."""
    wanted = small(num_inference_steps=3, scheduler=name)
    whole, after, ends = rounds.result(wanted), 0, []
    while True:
        stopped, left = drained(company(rounds), wanted, after)
        if stopped is None:
            break
        ends.append(stopped.step)
        again = resumed(company(rounds), wanted, left)
        assert again.resumed_from_step == (stopped.step or None)
        assert_same(again, whole)
        after += 1
    assert ends == sorted(ends)
    assert set(ends) == {0, 1, 2}


def test_drained_between_its_pictures(rounds: Rounds) -> None:
    """Where one picture is done and the next half-way, each goes on from its own place."""
    wanted = small(num_inference_steps=3, num_images_per_prompt=2, scheduler="heun")
    narrow = Rounds(model=rounds.runner.model, max_batch_rows=2)
    whole, seen = narrow.result(wanted), set()
    for after in (11, 14, 15, 19):
        stopped, left = drained(company(narrow), wanted, after)
        assert stopped is not None
        again = resumed(company(narrow), wanted, left)
        assert_same(again, whole)
        seen.add(again.resumed_from_step)
    assert seen == {None, 1, 2}


@pytest.mark.parametrize("name", ["kdpm2_a", "dpmpp_2s", "unipc"])
def test_pictures_at_different_evaluations(rounds: Rounds, name: str) -> None:
    """A job's pictures are captured and resumed wherever each of them is."""
    runner = rounds.runner
    wanted = small(num_inference_steps=4, num_images_per_prompt=2, scheduler=name)

    def go_on(images: list[Any], until: tuple[int, int]) -> list[Any]:
        for image, count in zip(images, until, strict=True):
            while image.evaluations < count:
                for output in runner.evaluate([image]):
                    image.step(output.output, output.noisy)
        return images

    def new() -> list[Any]:
        return runner.encode([runner.check(wanted)])[0]

    end = (len(new()[0].sampler.levels),) * 2
    whole = [image.latents for image in go_on(new(), end)]
    for until in ((3, 2), (1, 4), (end[0], 2)):
        images = go_on(new(), until)
        left = checkpoint.capture(images)
        go_on(images, end)
        again = checkpoint.resume(left.to_bytes(), new())
        assert tuple(image.evaluations for image in again) == until
        assert min(image.steps for image in again) == left.step
        for ours, theirs in zip(go_on(again, end), whole, strict=True):
            assert torch.equal(ours.latents, theirs)


def test_a_resume_of_a_resume(rounds: Rounds) -> None:
    """A job that is drained after each step of its own is still the undisturbed one at the end."""
    wanted = small(scheduler="dpmpp_2m_sde")
    whole, left, at = rounds.result(wanted), None, []
    while True:
        stopped, newer = drained(
            company(rounds), dataclasses.replace(wanted, checkpoint=left), after=3
        )
        if stopped is None:
            break
        at.append(stopped.step)
        left = newer
    assert at == [1, 2, 3, 4, 5]
    assert_same(resumed(company(rounds), wanted, left), whole)


def test_the_types_stay(rounds: Rounds) -> None:
    """A model in half precision goes on in half precision, to the bit."""
    half = Rounds(SPEC.model_copy(update={"dtype": "bfloat16"}))
    for name in ("lms", "unipc"):
        wanted = small(scheduler=name)
        whole, (_, left) = half.result(wanted), checkpoints(half, wanted)
        assert safetensors_io.unpack(left[4])[1]["0.latents"].dtype == torch.bfloat16
        again = resumed(company(half), wanted, left[4])
        assert again.resumed_from_step == 4
        assert_same(again, whole)


def test_a_sampler_that_adds_in_place(monkeypatch: pytest.MonkeyPatch, rounds: Rounds) -> None:
    """PNDM's Runge-Kutta steps, of a model whose own they are, add to a tensor that they keep."""
    own = diffusers.PNDMScheduler.from_config(rounds.pipe.scheduler.config, skip_prk_steps=False)
    monkeypatch.setattr(rounds.pipe, "scheduler", own)
    wanted = small()
    whole, runner = rounds.result(wanted), rounds.runner
    images = runner.encode([runner.check(wanted)])[0]
    left = []
    while not images[0].is_done:
        for output in runner.evaluate(images):
            output.image.step(output.output, output.noisy)
            left.append(checkpoint.capture(images))
    assert any("cur_model_output" in name for each in left for name in each.tensors[0])
    for snapshot in left[1:-1:3]:
        again = resumed(company(rounds), wanted, snapshot.to_bytes())
        assert again.resumed_from_step == snapshot.step
        assert_same(again, whole)


def test_in_company_of_others(rounds: Rounds) -> None:
    """A resumed job shares calls with others, each as near to alone as ever."""
    wanted = [small(seeds=(seed,)) for seed in (1, 2)]
    left = [checkpoints(rounds, each)[1][4] for each in wanted]
    batch = company(rounds)
    futures = [
        batch.submit(dataclasses.replace(each, checkpoint=data))
        for each, data in zip(wanted, [None, left[1]], strict=True)
    ]
    batch.run()
    for each, future in zip(wanted, futures, strict=True):
        difference = latents_of(future.result(timeout=0)) - latents_of(rounds.result(each))
        assert difference.abs().max() < 1e-3


def test_in_another_process(rounds: Rounds) -> None:
    """A checkpoint is for another process, whatever the order of its sets."""
    wanted = small(scheduler="dpmpp_2m_karras")
    _, left = checkpoints(rounds, wanted)
    code = (
        "import base64, json, sys\n"
        "from tests.engine.attempts import small\n"
        "from tests.engine.jobs import Rounds, latents_of\n"
        "left = base64.b64decode(sys.stdin.read())\n"
        "result = Rounds().result(small(scheduler='dpmpp_2m_karras', checkpoint=left))\n"
        "latents = latents_of(result).numpy().tobytes().hex()\n"
        "print(json.dumps([result.resumed_from_step, latents]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        input=base64.b64encode(left[4]),
        env=os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=True,
    )
    latents = latents_of(rounds.result(wanted)).numpy().tobytes().hex()
    assert json.loads(ran.stdout) == [4, latents]
