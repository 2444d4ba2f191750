"""Files that are no checkpoint of the job are ignored with a warning, whatever is in them."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import random
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.attempts import assert_same, checkpoints, new_batch, resumed, small
from tests.engine.cases import nightly, slow
from worker.engine import checkpoint, safetensors_io

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engine.jobs import Rounds
    from worker.engine.image_state import ImageState
    from worker.engine.job import Job, JobResult

#: Its scheduler keeps a list of outputs, a sample, and numbers; two images.
WANTED = small(num_inference_steps=3, scheduler="unipc", num_images_per_prompt=2)


@dataclasses.dataclass(frozen=True)
class Case:
    """A job, its checkpoint of step 2, and its undisturbed result."""

    rounds: Rounds
    left: bytes
    whole: JobResult
    #: New images, which nothing may change.
    fresh: list[ImageState]


@pytest.fixture(scope="module")
def case(rounds: Rounds) -> Case:
    """The job whose checkpoints are broken here."""
    whole, left = checkpoints(rounds, WANTED)
    runner = rounds.runner
    return Case(rounds, left[2], whole, runner.encode([runner.check(WANTED)])[0])


def assert_warned(caplog: pytest.LogCaptureFixture, why: str) -> None:
    """One warning, on one line, that says why."""
    warned = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(warned) == 1
    assert why in warned[0]
    assert "\n" not in warned[0]
    assert len(warned[0]) < 400


def assert_ignored(
    rounds: Rounds, wanted: Job, left: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning that says why, and the images of a new job."""
    caplog.clear()
    runner = rounds.runner
    new = runner.encode([runner.check(wanted)])[0]
    images = runner.encode([runner.check(dataclasses.replace(wanted, checkpoint=left))])[0]
    assert_warned(caplog, why)
    for ours, theirs in zip(images, new, strict=True):
        assert ours.evaluations == ours.steps == 0
        assert torch.equal(ours.latents, theirs.latents)
        assert torch.equal(ours.generator.get_state(), theirs.generator.get_state())
        assert getattr(ours.sampler.scheduler, "step_index", None) is None


@pytest.mark.parametrize("left", [b"", *slow(safetensors_io.pack({"format": 2}, {}))], ids=range(2))
def test_the_job_starts_anew(case: Case, caplog: pytest.LogCaptureFixture, left: bytes) -> None:
    """A job with an unusable checkpoint gives the picture of one that was never disturbed."""
    result = resumed(new_batch(case.rounds), WANTED, left)
    assert_warned(caplog, "unusable checkpoint")
    assert result.resumed_from_step is None
    assert_same(result, case.whole)


def forged(
    left: bytes, header: dict[str, Any] | None = None, **named: torch.Tensor | None
) -> bytes:
    """A file with a right digest and other entries; None removes one."""
    original, held = safetensors_io.unpack(left)
    for name, tensor in named.items():
        held.pop(name, None)
        if tensor is not None:
            held[name] = tensor
    return safetensors_io.pack(original | (header or {}), held)


@pytest.mark.parametrize(
    ("left", "why"),
    [
        (b"", "cannot be read"),
        (b"\0" * 64, "cannot be read"),
        (b"\xff" * 64, "cannot be read"),
        (b"PK\3\4" * 64, "cannot be read"),
        (safetensors_io.write(torch.zeros(4, 8, 8)), "cannot be read"),
        (safetensors.torch.save({}, {"header": "{}", "digest": "0"}), "digest does not match"),
        (safetensors_io.pack([], {}), "cannot be read"),  # type: ignore[arg-type]  # as another would
        (safetensors_io.pack({}, {}), "its format is None, not 1"),
        (safetensors_io.pack({"format": 2}, {}), "its format is 2, not 1"),
    ],
    ids=range(9),
)
def test_what_is_no_checkpoint(
    case: Case, caplog: pytest.LogCaptureFixture, left: bytes, why: str
) -> None:
    """Any other bytes are ignored with a warning."""
    assert_ignored(case.rounds, WANTED, left, why, caplog)


def test_nothing_is_unpickled(case: Case, tmp_path: Path) -> None:
    """Reading a file runs no code in it."""
    mark = tmp_path / "ran"

    class Cruel:
        def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
            return os.mkdir, (mark,)

    data = pickle.dumps(Cruel())
    assert checkpoint.resume(data, case.fresh) == case.fresh
    assert not mark.exists()
    pickle.loads(data)
    assert mark.exists()


def test_a_header_that_was_changed(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """The digest covers the header as well as the tensors."""
    left = case.left.replace(b"[2, 2]", b"[3, 3]")
    assert left != case.left
    assert_ignored(case.rounds, WANTED, left, "digest does not match", caplog)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"scheduler": "ddim"}, "its scheduler is 'unipc', not 'ddim'"),
        ({"num_inference_steps": 5}, "its steps is 3, not 5"),
        ({"seeds": (6,)}, "its seeds is [5, 6], not [6, 7]"),
        ({"num_images_per_prompt": 1}, "its seeds is [5, 6], not [5]"),
        ({"width": 48}, "its shape is [1, 4, 8, 8], not [1, 4, 8, 12]"),
        ({"prompts": ("a blue circle",)}, "its request is"),
        ({"negative_prompts": ("a blue circle",)}, "its request is"),
        ({"sag_scale": 0.5}, "its request is"),
    ],
)
def test_of_another_job(
    case: Case, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], why: str
) -> None:
    """A job does not resume from the checkpoint of a job for another picture."""
    wanted = dataclasses.replace(WANTED, **changes)
    assert_ignored(case.rounds, wanted, case.left, why, caplog)


def test_what_does_not_change_the_latents(case: Case) -> None:
    """A second attempt may report and encode differently."""
    wanted = dataclasses.replace(
        WANTED,
        id="b", priority=0, checkpoint_every=3, preview_every=1, max_images=2, max_side_px=2048,
    )  # fmt: skip
    again = resumed(new_batch(case.rounds), wanted, case.left)
    assert again.resumed_from_step == 2
    assert_same(again, case.whole)


@pytest.mark.parametrize("module", [torch, diffusers])
def test_of_another_version(
    case: Case, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    """A checkpoint of another version of torch or diffusers is not used."""
    name, here = module.__name__, str(module.__version__)
    with monkeypatch.context() as patched:
        patched.setattr(module, "__version__", "1.2.3")
        _, left = checkpoints(case.rounds, WANTED)
    assert_ignored(case.rounds, WANTED, left[2], f"its {name} is '1.2.3', not {here!r}", caplog)


def test_of_another_precision(case: Case, half: Rounds, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint of a model in another precision is not used."""
    _, left = checkpoints(half, WANTED)
    assert_ignored(case.rounds, WANTED, left[2], "its dtype is 'torch.bfloat16'", caplog)


def test_of_other_noise_levels(
    case: Case, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of a model with another noise schedule is not used."""
    own = case.rounds.pipe.scheduler
    other = type(own).from_config(own.config, beta_end=0.012)
    with monkeypatch.context() as patched:
        patched.setattr(case.rounds.pipe, "scheduler", other)
        _, left = checkpoints(case.rounds, WANTED)
    assert_ignored(case.rounds, WANTED, left[2], "its sampler's settings is", caplog)


LATENTS = torch.zeros(1, 4, 8, 8)
NAME = "0.scheduler.last_sample"


@pytest.mark.parametrize(
    ("header", "named", "why"),
    [
        ({"evaluations": None}, {}, "evaluations"),
        ({"evaluations": "22"}, {}, "evaluations"),
        ({"evaluations": [2]}, {}, "evaluations"),
        ({"evaluations": [2, 2, 2]}, {}, "evaluations"),
        ({"evaluations": [2, -1]}, {}, "evaluations"),
        ({"evaluations": [2, 5]}, {}, "evaluations"),
        ({"evaluations": [2, 10**30]}, {}, "evaluations"),
        ({"evaluations": [2, True]}, {}, "evaluations"),
        ({"evaluations": [2, 2.0]}, {}, "evaluations"),
        ({"evaluations": [2, [2]]}, {}, "evaluations"),
        ({"evaluations": [2, 1]}, {}, "unexpected tensors"),
        ({"evaluations": [0, 0]}, {}, "unexpected tensors"),
        ({}, {NAME: None}, "unexpected tensors"),
        ({}, {"0.generator": None}, "unexpected tensors"),
        ({}, {"2.latents": LATENTS}, "unexpected tensors"),
        ({}, {"0.scheduler.sigmas": LATENTS}, "unexpected tensors"),
        ({}, {"0.scheduler.step": LATENTS}, "unexpected tensors"),
        ({}, {"0.scheduler.__class__": LATENTS}, "unexpected tensors"),
        ({}, {"0.scheduler.model_outputs.2": LATENTS}, "unexpected tensors"),
        ({}, {"0.scheduler.model_outputs.-1": LATENTS}, "unexpected tensors"),
        ({}, {"0.latents": LATENTS.double()}, "its 0.latents is torch.float64"),
        ({}, {"0.latents": LATENTS[:, :3]}, "its 0.latents is torch.float32 (1, 3, 8, 8)"),
        ({}, {"1.latents": LATENTS[:0]}, "its 1.latents is torch.float32 (0, 4, 8, 8)"),
        ({}, {NAME: torch.tensor(1.0)}, f"its {NAME} is torch.float32 ()"),
        ({}, {NAME: LATENTS.to(torch.float8_e4m3fn)}, f"its {NAME} is torch.float8_e4m3fn"),
        ({}, {"1.generator": torch.zeros(5056, dtype=torch.uint8)}, "cannot be read"),
        ({}, {"1.generator": torch.full((5056,), 255, dtype=torch.uint8)}, "cannot be read"),
        ({}, {"1.generator": torch.zeros(8, dtype=torch.uint8)}, "its 1.generator is"),
    ],
)
def test_forged(
    case: Case,
    caplog: pytest.LogCaptureFixture,
    header: dict[str, Any],
    named: dict[str, torch.Tensor | None],
    why: str,
) -> None:
    """A file with a right digest gives a sampler no tensor that it would not have itself.

    The job's new images are not changed, however late the file is found to be wrong.
    """
    assert checkpoint.resume(forged(case.left, header, **named), case.fresh) == case.fresh
    assert why in caplog.records[-1].getMessage()
    for image in case.fresh:
        assert (image.evaluations, image.sampler.scheduler.step_index) == (0, None)


def test_found_out_late(rounds: Rounds, caplog: pytest.LogCaptureFixture) -> None:
    """A sampler that draws noise has drawn none after an unusable file was read."""
    wanted = small(num_inference_steps=3, scheduler="euler_a")
    whole, left = checkpoints(rounds, wanted)
    spoilt = forged(left[2], {}, **{"0.latents": LATENTS.double()})
    assert_ignored(rounds, wanted, spoilt, "its 0.latents is torch.float64", caplog)
    assert_same(resumed(new_batch(rounds), wanted, spoilt), whole)


@pytest.mark.parametrize("header", ["[" * 100_000, "1" * 100_000, "{}" * 2, '{"format":', "\0"])
def test_a_header_to_choke_on(case: Case, caplog: pytest.LogCaptureFixture, header: str) -> None:
    """A header that is no JSON is ignored with a warning."""
    metadata = {"header": header, "digest": safetensors_io._digest(header, {})}
    left = safetensors.torch.save({}, metadata)
    assert checkpoint.resume(left, case.fresh) == case.fresh
    assert "cannot be read" in caplog.records[-1].getMessage()


def _mutated(data: bytes, dice: random.Random) -> bytes:
    """Some of the file lost, doubled, turned or overwritten."""
    spoilt = bytearray(data)
    # Half of it in the first 3 KB, where the file says what it holds.
    most = dice.choice([16, 3000, len(data), len(data)])
    for _ in range(dice.choice([1, 1, 2, 20])):
        at = dice.randrange(most) % max(1, len(spoilt))
        match dice.randrange(5):
            case 0:
                spoilt[at] ^= 1 << dice.randrange(8)
            case 1:
                spoilt[at] = dice.randrange(256)
            case 2:
                del spoilt[at : at + dice.choice([1, 8, len(data)])]
                spoilt += b"\0" * (not spoilt)
            case 3:
                spoilt[at:at] = spoilt[: dice.choice([1, 8, 1000])]
            case _:
                spoilt[at : at + 8] = dice.randbytes(8)
    return bytes(spoilt)


@pytest.mark.parametrize("files", [100, *nightly(500)])
def test_bits_that_are_lost(case: Case, files: int) -> None:
    """A file with lost or changed bits is ignored, or gives what was written."""
    images, dice = case.fresh, random.Random(1)
    whole = checkpoint.resume(case.left, images)
    assert whole != images
    expected, gone_on = [checkpoint._tensors(image) for image in whole], 0
    for _ in range(files):
        again = checkpoint.resume(_mutated(case.left, dice), images)
        if again == images:
            continue
        gone_on += 1
        for image, state in zip(again, expected, strict=True):
            found = checkpoint._tensors(image)
            assert found.keys() == state.keys()
            assert all(torch.equal(found[name], state[name]) for name in state)
    assert gone_on < files / 10


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
_TENSORS = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
    st.sampled_from([(), (0,), (1,), (5056,), (1, 4, 8, 8), (1, 4, 8, 9), (2, 4, 8, 8)]),
    st.sampled_from([torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool]),
    st.sampled_from([0.0, 1.0, 3e38, -1.0, float("nan"), float("inf")]),
)


RANDOM = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(RANDOM, max_examples=30, derandomize=True)
@given(data=st.data())
def test_forged_at_random(case: Case, data: st.DataObject) -> None:
    """A file with a right digest and anything else wrong is ignored, or its job comes to an end."""
    assert_harmless(case, data)


@pytest.mark.slow
@settings(RANDOM, max_examples=150)
@given(data=st.data())
def test_many_forged_at_random(case: Case, data: st.DataObject) -> None:
    """So are many, other ones in each run."""
    assert_harmless(case, data)


def assert_harmless(case: Case, data: st.DataObject) -> None:
    original, held = safetensors_io.unpack(case.left)
    names = st.sampled_from(
        [*sorted(held), "0.scheduler.timesteps", "0.scheduler.config", "9.latents", ""]
    )
    header = data.draw(
        st.dictionaries(
            st.sampled_from([*original]), _JSON | st.just([2, 2]) | st.just([1, 2]), max_size=1
        )
    )
    named = data.draw(st.dictionaries(names, st.none() | _TENSORS, max_size=2))
    again = checkpoint.resume(forged(case.left, header, **named), case.fresh)
    for image in again if again != case.fresh else ():
        while not image.is_done:
            image.step(LATENTS, image.unet_input())
        assert image.latents.shape == LATENTS.shape
