"""What a model's first job does not wait for: nothing is measured or fitted before it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from tests.engine.jobs import Rounds, job
from worker.engine import previews
from worker.engine.device import warmup
from worker.engine.device.capacity import Capacity

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


@pytest.fixture
def rounds(rounds: Rounds) -> Rounds:
    """The bundled model, whose rows no setting sets."""
    return Rounds(model=rounds.runner.model, max_batch_rows=None)


@pytest.fixture
def measured(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float] | None]:
    """What was loading at each measurement, which finds eight rows."""
    seen: list[tuple[str, float] | None] = []

    def capacity(*_: Any) -> Capacity:
        seen.append(rounds.runners.loading)
        return Capacity(8.0, 16 * 16)

    monkeypatch.setattr(warmup, "capacity", capacity)
    return seen


def test_rows_are_measured_when_two_images_wait(
    rounds: Rounds, measured: list[tuple[str, float] | None]
) -> None:
    """A model's rows are measured once, when two images wait, and not for one image alone."""
    rounds.result(job())
    assert measured == []
    for _ in range(2):
        futures = [rounds.submit(job(id=name, seeds=(5,))) for name in "ab"]
        rounds.run()
        assert [future.result().batch > 1 for future in futures] == [True, True]
    (loading,) = measured
    assert loading is not None
    assert loading[0] == "default"
    assert rounds.runners.loading is None
    assert rounds.runner.unet.capacity.rows == 8.0


def test_an_image_alone_needs_no_measurement(rounds: Rounds) -> None:
    """An image alone has the same bits before and after the rows were measured."""
    first = rounds.result(job(output_type="latent")).images[0].pixels
    rounds.runner.unet.measure()
    assert torch.equal(rounds.result(job(output_type="latent")).images[0].pixels, first)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("out of memory"), RuntimeError("wrong shape")]
)
def test_a_measurement_that_fails_fails_no_job(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A failed measurement fails no job: one row is tried, and more after 100 calls that fit."""
    calls: list[Exception] = []

    def capacity(*_: Any) -> Capacity:
        calls.append(error)
        raise error

    monkeypatch.setattr(warmup, "capacity", capacity)
    futures = [rounds.submit(job(id=name)) for name in "ab"]
    rounds.run()
    assert [len(future.result().images) for future in futures] == [1, 1]
    assert len(calls) == 1
    found = rounds.runner.unet.capacity
    assert found.limit(16, 16) == 1
    for _ in range(100):
        found = found.after_call()
    assert found.rows > 1


@pytest.mark.parametrize(("preview_every", "fits"), [(0, 0), (1, 1)])
def test_the_map_of_previews_is_fitted_for_previews(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch, preview_every: int, fits: int
) -> None:
    """The map of previews is fitted once, for the first job that wants them, and for no other."""
    fitted: list[bool] = []
    fit: Callable[..., Any] = previews.fit

    def counted(*given: Any) -> Any:
        fitted.append(torch.is_inference_mode_enabled())
        return fit(*given)

    monkeypatch.setattr(previews, "fit", counted)
    for _ in range(2):
        rounds.result(job(preview_every=preview_every))
    assert fitted == [True] * fits
