"""Tasks that run at once share the network's calls, and nobody's picture is another's."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tests.service.conftest import END_S, check_events, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Service

REQUEST = {
    "prompt": "a large red star on a blue background", "num_inference_steps": 60, "sag_scale": 0.75,
}  # fmt: skip


def pixels(files: dict[str, bytes], key: str) -> np.ndarray:
    with Image.open(io.BytesIO(files[key])) as picture:
        return np.asarray(picture.convert("RGB"), np.int16)


def test_tasks_share_calls(service: Service, stored: Callable[[str], dict[str, bytes]]) -> None:
    """Eight tasks at once: each shares its calls, and its picture is the one that it gets alone.

    One of another size and one that is cancelled are among them.
    """
    handles = [service.client.submit(REQUEST | {"seed": seed}) for seed in range(8)]
    other = service.client.submit(REQUEST | {"seed": 8, "width": 96})
    leaving = service.client.submit(REQUEST | {"seed": 9, "num_inference_steps": 150})
    wait_for(leaving, "progress")
    leaving.cancel()
    results = [handle.result(END_S) for handle in handles]
    assert max(result.batch for result in results) > 2
    assert other.result(END_S).images[0].width == 96
    for handle in (*handles, other, leaving):
        check_events(list(handle.events(timeout=END_S)))
    for seed in (0, 7):
        alone = service.client.submit(REQUEST | {"seed": seed}).result(END_S)
        assert alone.batch == 1.0
        files = stored(service.prefix)
        key = results[seed].images[0].key
        difference = pixels(files, key) - pixels(files, alone.images[0].key)
        assert np.abs(difference).max() <= 1
