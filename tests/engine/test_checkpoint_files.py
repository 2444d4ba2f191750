"""Files that are no checkpoint of the job are ignored with a warning, whatever is in them."""

from __future__ import annotations

import os
import pickle
import random
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import torch

from tests.engine.attempts import assert_same, new_batch, resumed
from tests.engine.cases import nightly, slow
from tests.engine.checkpoint_cases import WANTED, Case, assert_ignored, assert_warned
from worker.engine import checkpoint, safetensors_io

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("left", [b"", *slow(safetensors_io.pack({"format": 2}, {}))], ids=range(2))
def test_the_job_starts_anew(case: Case, caplog: pytest.LogCaptureFixture, left: bytes) -> None:
    """A job with an unusable checkpoint gives the picture of one that was never disturbed."""
    result = resumed(new_batch(case.rounds), WANTED, left)
    assert_warned(caplog, "unusable checkpoint")
    assert result.resumed_from_step is None
    assert_same(result, case.whole)


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
