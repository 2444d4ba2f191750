"""What fits in a GPU's memory: more rows of a call, and images of a decode."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.measured_models import decoding
from worker.engine.device import warmup
from worker.engine.device.capacity import Capacity


def memory(monkeypatch: pytest.MonkeyPatch, growth_bytes: int) -> None:
    """A GPU of 100 bytes: weights hold 10, torch's cache 10 more, and other processes 10."""
    values: dict[str, Any] = {
        "mem_get_info": (70, 100),
        "memory_allocated": 10,
        "memory_reserved": 20,
        "max_memory_allocated": 10 + growth_bytes,
        "reset_peak_memory_stats": None,
    }
    for name, value in values.items():
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)


@pytest.mark.parametrize(
    ("growth_bytes", "decoder_bytes", "has_room"),
    [
        (29, 0, True),
        (29, 20, True),
        (29, 22, False),
        (30, 0, False),
        (20, 39, True),
        (20, 40, False),
    ],
)
def test_room_is_left_to_others(
    monkeypatch: pytest.MonkeyPatch, growth_bytes: int, decoder_bytes: int, has_room: bool
) -> None:
    """Twice the rows are tried where twice the memory is free beside a fifth of the device.

    And beside what a decode needs, where that is more.
    """
    memory(monkeypatch, growth_bytes)
    assert warmup._has_room(torch.device("cuda"), decoder_bytes) == has_room
    assert warmup._has_room(torch.device("cpu"), decoder_bytes)


@pytest.mark.parametrize(("growth_bytes", "images"), [(1, 8), (10, 8), (11, 7), (40, 2), (90, 1)])
def test_what_a_decode_needs_is_measured(
    monkeypatch: pytest.MonkeyPatch, growth_bytes: int, images: int
) -> None:
    """A decode has as many images as memory is free for, at most 8, and fewer of larger images."""
    memory(monkeypatch, growth_bytes)
    decoded: list[torch.Size] = []
    monkeypatch.setattr(torch, "zeros", lambda *size, **_: torch.empty(size))
    gpu = decoding("cuda", lambda each: decoded.append(each.shape))
    found, needed_bytes = warmup.decode_capacity(gpu, 8)
    assert decoded == [(1, 4, 6, 6)]
    assert needed_bytes == growth_bytes
    assert found.limit(6, 6) == images
    assert found.limit(60, 60) == max(1, int(80 / growth_bytes / 100))
    on_cpu, needed_bytes = warmup.decode_capacity(decoding("cpu", decoded.append), 8)
    assert (on_cpu.limit(600, 600), needed_bytes) == (8, 0)


def test_a_model_loads_where_its_own_size_can_not_be_decoded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A model loads where decoding its own size is out of memory; any other error is raised."""
    memory(monkeypatch, 1)
    monkeypatch.setattr(torch, "zeros", lambda *size, **_: torch.empty(size))
    emptied: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(None))
    errors = [torch.OutOfMemoryError("out of memory"), RuntimeError("wrong shape")]

    def decode(_: torch.Tensor) -> None:
        raise errors.pop(0)

    gpu = decoding("cuda", decode)
    found, needed_bytes = warmup.decode_capacity(gpu, 8)
    assert (found, needed_bytes) == (Capacity(1.0, 36, 8), 0)
    assert (found.limit(6, 6), found.limit(3, 3)) == (1, 4)
    assert emptied == [None]
    assert "out of memory" in caplog.text
    with pytest.raises(RuntimeError, match="wrong shape"):
        warmup.decode_capacity(gpu, 8)
