"""Checkpoints: a job resumes where an earlier attempt stopped, with the same bits."""

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

from tests.engine.attempts import assert_same, checkpoints, new_batch, resumed, small
from tests.engine.cases import nightly, slow
from tests.engine.jobs import Rounds, assert_close, latents_of
from worker.engine import checkpoint, checkpoint_identity, safetensors_io
from worker.engine.sampling import samplers

STEPS = 6
PROMPTS = ("a large red star on a blue background", "a small green circle")
GIVEN = safetensors_io.write(torch.linspace(-2, 2, 256).view(4, 8, 8))


#: One sampler of each class.
BY_DAY = (
    "ddim", "ddpm", "pndm", "lcm", "tcd", "dpmpp_2m", "dpmpp_2s", "unipc", "deis", "lms", "euler",
    "euler_a", "heun", "kdpm2", "kdpm2_a", "ipndm",
)  # fmt: skip


def sampler_cases() -> list[Any]:
    """Each class by day, each sampler in `test-all`, with one step in turn; all pairs by night."""
    others = [name for name in samplers.SAMPLERS if name not in BY_DAY]
    turns = [(name, 1 + index % (STEPS - 1)) for index, name in enumerate([*BY_DAY, *others])]
    rest = [
        (name, step)
        for name in samplers.SAMPLERS
        for step in range(1, STEPS)
        if (name, step) not in turns
    ]
    return [*turns[: len(BY_DAY)], *slow(*turns[len(BY_DAY) :]), *nightly(*rest)]


@pytest.mark.parametrize(("name", "step"), sampler_cases())
def test_with_every_sampler(rounds: Rounds, name: str, step: int) -> None:
    """Resumed from its first step, the middle or the last but one, a picture has the same bits.

    The checkpoints are written when the job is long past them, so nothing in them may change. The
    last holds a generator, and no more than the latents of five images.
    """
    wanted = small(scheduler=name)
    whole, left = checkpoints(rounds, wanted)
    assert list(left) == list(range(1, STEPS))
    saved = safetensors_io.unpack(left[STEPS - 1])[1].values()
    assert sum(each.nbytes for each in saved) < 5056 + 5 * latents_of(whole).nbytes + 64
    again = resumed(new_batch(rounds), wanted, left[step])
    assert again.resumed_from_step == step
    assert_same(again, whole)


KINDS = (
    {"scheduler": None},
    {"prompts": PROMPTS, "num_images_per_prompt": 2, "scheduler": "heun", "height": 48},
    {"guidance_scale": 1.0, "sag_scale": 0.0, "scheduler": "euler_a"},
    {"latents": GIVEN, "scheduler": "deis"},
    {"scheduler": "ddim", "eta": 0.7},
    {"scheduler": "tcd", "eta": 0.7},
    {"sag_scale": 0.0, "scheduler": "pndm"},
    {"guidance_scale": 1.0, "scheduler": "unipc"},
    {"prompts": PROMPTS, "num_images_per_prompt": 2, "scheduler": "dpmpp_2m_sde"},
    {"preview_every": 1, "scheduler": "lms"},
)


def kind_cases() -> list[Any]:
    """The first six by day with one step in turn, the rest in `test-all`."""
    pairs = [(number, step) for number in range(len(KINDS)) for step in (1, 3)]
    by_day = [(number, (1, 3)[number % 2]) for number in range(6)]
    return [*by_day, *slow(*(pair for pair in pairs if pair not in by_day))]


@pytest.mark.parametrize(("number", "step"), kind_cases())
def test_with_every_kind_of_job(rounds: Rounds, number: int, step: int) -> None:
    """So it has with `eta`, without either guidance, with many images, and with given latents."""
    wanted = small(num_inference_steps=4, **KINDS[number])
    whole, left = checkpoints(rounds, wanted)
    again = resumed(new_batch(rounds), wanted, left[step])
    assert again.resumed_from_step == step
    assert_same(again, whole)


def test_pictures_are_the_same_files(rounds: Rounds) -> None:
    """Not only the latents, but the pixels of a resumed job are the same."""
    wanted = small(output_type="png")
    whole = rounds.result(wanted)
    again = resumed(new_batch(rounds), wanted, checkpoints(rounds, wanted)[1][4])
    assert again.images[0].pixels.tobytes() == whole.images[0].pixels.tobytes()


@pytest.mark.parametrize("name", ["unipc", *slow("kdpm2_a", "dpmpp_2s")])
def test_images_at_different_evaluations(rounds: Rounds, name: str) -> None:
    """A job's images are captured and resumed at whatever evaluation each of them is."""
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


@pytest.mark.parametrize("name", ["lms", *slow("unipc")])
def test_the_types_stay(half: Rounds, name: str) -> None:
    """A model in half precision resumes in half precision, bit for bit."""
    wanted = small(scheduler=name)
    whole, left = checkpoints(half, wanted)
    assert safetensors_io.unpack(left[4])[1]["0.latents"].dtype == torch.bfloat16
    again = resumed(new_batch(half), wanted, left[4])
    assert again.resumed_from_step == 4
    assert_same(again, whole)


def test_a_sampler_that_adds_in_place(monkeypatch: pytest.MonkeyPatch, rounds: Rounds) -> None:
    """PNDM's Runge-Kutta steps, where the model's own scheduler has them, add to a tensor."""
    own = diffusers.PNDMScheduler.from_config(rounds.pipe.scheduler.config, skip_prk_steps=False)
    monkeypatch.setattr(rounds.pipe, "scheduler", own)
    wanted = small(num_inference_steps=4)
    whole, runner = rounds.result(wanted), rounds.runner
    images = runner.encode([runner.check(wanted)])[0]
    left = []
    while not images[0].is_done:
        for output in runner.evaluate(images):
            output.image.step(output.output, output.noisy)
            left.append(checkpoint.capture(images))
    assert any("cur_model_output" in name for each in left for name in each.tensors[0])
    for snapshot in left[1:-1:4]:
        again = resumed(new_batch(rounds), wanted, snapshot.to_bytes())
        assert again.resumed_from_step == (snapshot.step or None)
        assert_same(again, whole)


def test_together_with_others(rounds: Rounds) -> None:
    """A resumed job that shares UNet calls is equal to itself alone, but for rounding."""
    wanted = [small(seeds=(seed,)) for seed in (1, 2)]
    left = [checkpoints(rounds, each)[1][4] for each in wanted]
    batch = new_batch(rounds)
    futures = [
        batch.submit(dataclasses.replace(each, checkpoint=data))
        for each, data in zip(wanted, [None, left[1]], strict=True)
    ]
    batch.run()
    for each, future in zip(wanted, futures, strict=True):
        assert_close(latents_of(future.result(timeout=0)), latents_of(rounds.result(each)))


def test_the_order_of_sets_does_not_matter(rounds: Rounds) -> None:
    """A checkpoint's digests are the same where diffusers' own notes have another order."""
    image = rounds.runner.encode([rounds.runner.check(small(scheduler="dpmpp_2m_karras"))])[0][0]
    digest = checkpoint_identity.sampler_digest(image.sampler)
    config = image.sampler.scheduler.config
    noted = config["_use_default_values"]
    image.sampler.scheduler.register_to_config(_use_default_values=noted[::-1])
    assert image.sampler.scheduler.config["_use_default_values"] != noted
    assert checkpoint_identity.sampler_digest(image.sampler) == digest


@pytest.mark.slow
def test_in_another_process(rounds: Rounds) -> None:
    """A checkpoint is usable in another process, whatever the order of its sets."""
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
