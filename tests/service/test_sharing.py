"""Tasks that run at once share UNet calls, and each gets its own picture."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.service.conftest import END_S, check_events, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Service

REQUEST = {"prompt": "a large red star on a blue background", "sag_scale": 0.75}


def pixels(files: dict[str, bytes], key: str) -> np.ndarray:
    with Image.open(io.BytesIO(files[key])) as picture:
        return np.asarray(picture.convert("RGB"), np.int16)


@pytest.mark.parametrize(
    ("tasks", "steps", "least_batch"), [(2, 5, 1), pytest.param(8, 12, 2, marks=pytest.mark.slow)]
)
def test_tasks_share_calls(
    service: Service,
    stored: Callable[[str], dict[str, bytes]],
    tasks: int,
    steps: int,
    least_batch: int,
) -> None:
    """Tasks that run at once share calls; each picture is the one that its task gives alone.

    A task of another size and one that is cancelled are among them.
    """
    request = REQUEST | {"num_inference_steps": steps}
    handles = [service.client.submit(request | {"seed": seed}) for seed in range(tasks)]
    other = service.client.submit(request | {"seed": 8, "width": 96})
    leaving = service.client.submit(request | {"seed": 9, "num_inference_steps": 150})
    wait_for(leaving, "progress")
    leaving.cancel()
    results = [handle.result(END_S) for handle in handles]
    assert max(result.batch for result in results) > least_batch
    assert other.result(END_S).images[0].width == 96
    for handle in (*handles, other, leaving):
        check_events(list(handle.events(timeout=END_S)))
    for seed in {0, tasks - 1} if tasks > 2 else {0}:
        alone = service.client.submit(request | {"seed": seed}).result(END_S)
        assert alone.batch == 1.0
        files = stored(service.prefix)
        key = results[seed].images[0].key
        difference = pixels(files, key) - pixels(files, alone.images[0].key)
        assert np.abs(difference).max() <= 1
