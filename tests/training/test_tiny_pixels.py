"""The bundled pixel-space model: its classes, its training, its measures, and what it draws."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from training import progress
from training.export import fingerprint
from training.pixels import card, classes, dataset, denoiser, evaluate
from training.progress import Stage
from worker.config.models import SHIPPED_PIXEL_MODEL, shipped_pixels

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = SHIPPED_PIXEL_MODEL
LARGEST_BYTES = 4_000_000


def test_each_drawn_picture_is_read_as_its_class() -> None:
    """The judge makes no error on drawn pictures, and knows one class from the others."""
    for label in range(0, len(classes.CLASSES), 11):
        picture = dataset.draw(random.Random(f"test/{label}"), label)
        assert picture.size == (dataset.SIDE_PX, dataset.SIDE_PX)
        assert dataset.is_right(picture, label)
        assert not dataset.is_right(picture, (label + 1) % len(classes.CLASSES))
        assert not dataset.is_right(picture, (label + 10) % len(classes.CLASSES))


def test_the_settings_name_the_label_of_no_class() -> None:
    """`null_class` of the bundled model's settings is that of its training."""
    assert shipped_pixels().null_class == classes.NULL_CLASS == len(classes.CLASSES)
    assert classes.CLASSES[classes.label_of("green", "star")] == ("green", "star")
    assert classes.name_of(0) == " ".join(classes.CLASSES[0])


def test_the_distance_is_frechets() -> None:
    """It is 0 between equal sets, and |m1 - m2|^2 + (s1 - s2)^2 between two normals of one axis."""
    rng = np.random.default_rng(0)
    one = rng.normal(0.0, 1.0, (500, 6))
    assert abs(evaluate.frechet(one, one)) < 1e-9
    shifted = one + np.array([2.0, 0, 0, 0, 0, 0])
    assert evaluate.frechet(one, shifted) == pytest.approx(4.0, abs=1e-9)
    wider = one * 3.0
    mean, spread = one.mean(0), np.trace(np.cov(one, rowvar=False))
    expected = float(((2 * mean) ** 2).sum() + 4 * spread)
    assert evaluate.frechet(one, wider) == pytest.approx(expected, rel=1e-9)


def test_features_are_the_reduced_picture() -> None:
    """A picture of one colour has that colour in each of its 8 x 8 cells."""
    found = evaluate.features([Image.new("RGB", (32, 32), (255, 0, 51))])
    assert found.shape == (1, 192)
    assert np.allclose(found.reshape(-1, 3), [1.0, 0.0, 0.2])


class KilledError(Exception):
    """Stands for the end of the process."""


@dataclass(frozen=True)
class Killed(denoiser.Batches):
    """Batches whose third draw ends the training."""

    def draw(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Raise at step 3."""
        if step == 3:
            raise KilledError
        return super().draw(step)


@pytest.mark.slow
def test_a_resumed_training_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that was killed after a checkpoint and resumed ends with the same weights."""
    for name, value in (("STEPS", 4), ("BATCH", 2), ("SAVE_EVERY", 2)):
        monkeypatch.setattr(denoiser, name, value)
    monkeypatch.setattr(progress, "LOG_EVERY", 1)
    pixels = torch.randn((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    data = dataset.Dataset(pixels, torch.tensor([0, 1, 2, 3]))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    denoiser.train(denoiser.Batches(data, 0), whole)
    with pytest.raises(KilledError):
        denoiser.train(Killed(data, 0), killed)
    denoiser.train(denoiser.Batches(data, 0), killed)
    resumed = denoiser.averaged(killed).state_dict()
    for name, weight in denoiser.averaged(whole).state_dict().items():
        assert torch.equal(weight, resumed[name]), name
    assert [row["step"] for row in Stage(denoiser.NAME, killed).rows()] == [1, 2, 3, 4]


def test_the_folder_is_small_and_safe() -> None:
    """It is below 4 MB and holds nothing that runs code when it is loaded."""
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < LARGEST_BYTES
    assert {file.suffix for file in files} == {".safetensors", ".json", ".md", ".png"}


def test_the_card_is_that_of_the_weights() -> None:
    """The measurements are of the weights beside them, and the card is made of those files."""
    assert evaluate.read(FOLDER).weights_sha256 == fingerprint(FOLDER)
    assert (FOLDER / card.FILE).read_text() == card.text(FOLDER)


@pytest.mark.parametrize("sag_scale", [0.0, 1.0])
def test_it_draws_what_is_asked(sag_scale: float) -> None:
    """Of six classes, one of each shape, at most one is drawn wrong."""
    labels = [classes.label_of("red", shape) for shape in ("circle", "square", "star")]
    labels += [classes.label_of("blue", shape) for shape in ("triangle", "ring", "cross")]
    with evaluate.PixelEngine(FOLDER) as engine:
        pictures = engine.pictures(labels, evaluate.Guidance(2.0, sag_scale))
    right = [dataset.is_right(*each) for each in zip(pictures, labels, strict=True)]
    assert sum(right) >= 5
