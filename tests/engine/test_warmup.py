"""How many rows a call should have, measured by the test's own clock, so that nothing waits."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.engine.device import device_errors, warmup
from worker.engine.device.capacity import Capacity
from worker.engine.device.warmup import MAX_CALL_S, MIN_GAIN, TRIED_ROWS, capacity
from worker.engine.families.conditioning import TEXT
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.loaded_model import LoadedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.engine.families.conditioning import Conditioning

PURE = settings(deadline=None, derandomize=True, max_examples=150)
SIDE = st.integers(1, 128)
CAPACITIES = st.builds(Capacity, st.sampled_from(TRIED_ROWS), SIDE.map(lambda side: side * side))


def pipe(sample_size: Any = 64) -> Any:
    """The parts of a pipeline that are measured: its sizes."""
    config = SimpleNamespace(sample_size=sample_size, in_channels=4, cross_attention_dim=8)
    return SimpleNamespace(
        unet=SimpleNamespace(config=config, dtype=torch.float32),
        text_encoder=SimpleNamespace(config=SimpleNamespace(hidden_size=8)),
        tokenizer=SimpleNamespace(model_max_length=7),
    )


def decoding(device: str, decode: Callable[..., Any]) -> LoadedModel:
    """A model of latents of 6 x 6 whose autoencoder decodes by `decode`."""
    made = pipe(6)
    config = SimpleNamespace(latent_channels=4)
    made.vae = SimpleNamespace(config=config, dtype=torch.float32, decode=decode)
    return LoadedModel(StableDiffusion(), made, device, "none")


@dataclass
class TimedUnet:
    """A UNet whose calls take a given time, on a clock of its own."""

    #: Seconds of a call of so many rows.
    seconds: Callable[[int], float]
    #: Rows beyond which the memory is full.
    holds: int = 1000
    #: How much longer the first call of a size takes.
    first_s: float = 0.0
    now_s: float = 0.0
    calls: list[int] = field(default_factory=list)
    inputs: list[tuple[torch.Tensor, Sequence[float], Conditioning]] = field(default_factory=list)

    def __call__(
        self, noisy: torch.Tensor, timesteps: Sequence[float], conditioning: Conditioning
    ) -> None:
        """One call, as the runner makes it."""
        rows = len(timesteps)
        self.now_s += self.seconds(rows) + (rows not in self.calls) * self.first_s
        self.calls.append(rows)
        self.inputs.append((noisy, timesteps, conditioning))
        if rows > self.holds:
            raise torch.OutOfMemoryError

    def measured(self, max_rows: int | None = None, sample_size: Any = 4) -> Capacity:
        """The capacity that is found, by this network's clock."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(warmup, "time", SimpleNamespace(perf_counter=lambda: self.now_s))
            model = LoadedModel(StableDiffusion(), pipe(sample_size), "cpu", "none")
            return capacity(model, self, max_rows)


@PURE
@given(st.lists(st.floats(0.001, 2.0), min_size=len(TRIED_ROWS), max_size=len(TRIED_ROWS)))
@example([0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16])
@example([0.6, 0.7, 0.95, 1.0, 1.0, 1.0, 1.0])
def test_the_fewest_rows_that_are_cheap(times: list[float]) -> None:
    """No short call is cheaper per row by over 5 %, and none of fewer rows is as cheap.

    Short is up to half a second, or 1.5 times one row alone. After the first call that is not, none
    is tried.
    """
    table = dict(zip(TRIED_ROWS, times, strict=True))
    network = TimedUnet(table.__getitem__)
    found = int(network.measured().rows)
    longest_s = max(MAX_CALL_S, 1.5 * table[1])
    tried = sorted(set(network.calls))
    assert tried == list(TRIED_ROWS[: len(tried)])
    assert all(table[rows] <= longest_s for rows in tried[:-1])
    assert table[tried[-1]] > longest_s or tried == list(TRIED_ROWS)
    cost = {rows: table[rows] / rows for rows in tried if table[rows] <= longest_s}
    assert found in cost
    for rows, each in cost.items():
        assert (
            cost[found] <= each * (1 + MIN_GAIN) + 1e-9
        )  # of a clock up to 1,000 s, whose spacing is 1e-13
        assert rows >= found or each > min(cost.values()) * (1 + MIN_GAIN) - 1e-9


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        (lambda rows: 0.01 * rows, 1),
        (lambda rows: 0.05 + 0.0001 * rows, 64),
        (lambda rows: 0.01 * max(8, rows), 8),
        (lambda rows: 0.02 + 0.01 * rows, 32),
        (lambda rows: 0.3 if rows == 1 else 0.3 + 0.1 * rows, 2),
        (lambda rows: 2.0 * rows, 1),
        (lambda rows: 2.0 + 0.01 * rows, 64),
    ],
    ids=["cpu", "large-gpu", "full-at-8", "overhead", "short", "slow", "offloaded"],
)
def test_kinds_of_devices(seconds: Callable[[int], float], rows: int) -> None:
    """One row is found where rows cost alike, many where calls cost, else what fills the device.

    Overhead: 0.34 s for 32 rows, over half a second for 64.
    """
    assert TimedUnet(seconds).measured().rows == rows


def test_the_first_call_of_a_size_is_not_measured() -> None:
    """The time to select kernels or compile changes nothing."""
    expected = TimedUnet(lambda rows: 0.01 * max(8, rows)).measured()
    assert TimedUnet(lambda rows: 0.01 * max(8, rows), first_s=30.0).measured() == expected


@pytest.mark.parametrize("held_up_s", [0.04, 0.2, 5.0])
@pytest.mark.parametrize("disturbed", [1, 8, 64])
def test_one_disturbed_call_changes_nothing(disturbed: int, held_up_s: float) -> None:
    """One call that other processes slow down does not change the result."""
    calls: list[int] = []

    def seconds(rows: int) -> float:
        calls.append(rows)
        hiccup_s = held_up_s if rows == disturbed and calls.count(rows) == 2 else 0.0
        return 0.001 * max(8, rows) + hiccup_s

    assert TimedUnet(seconds).measured().rows == 8


@pytest.mark.parametrize("holds", [1, 2, 3, 16, 63])
def test_memory_sets_the_limit(holds: int) -> None:
    """Where more rows do not fit, the largest number that did is used."""
    network = TimedUnet(lambda rows: 0.01 + 0.0001 * rows, holds=holds)
    assert network.measured().rows == max(rows for rows in TRIED_ROWS if rows <= holds)
    assert sum(rows > holds for rows in network.calls) == 1
    assert max(network.calls) <= 2 * holds


def test_a_device_without_memory_for_one_row() -> None:
    """Where not even one row fits, loading fails as out of memory."""
    with pytest.raises(torch.OutOfMemoryError):
        TimedUnet(lambda _: 0.01, holds=0).measured()


@pytest.mark.parametrize("max_rows", [2, 5, 256])
def test_a_setting_is_not_measured(max_rows: int) -> None:
    """With `max_batch_rows` nothing is measured: one call of two rows warms up.

    It holds for latents of the model's own size and smaller; larger ones get fewer.
    """
    network = TimedUnet(lambda _: 100.0)
    found = network.measured(max_rows)
    assert network.calls == [2]
    assert found.limit(4, 4) == max_rows
    assert found.limit(1, 1) == max_rows
    assert found.limit(8, 8) == max(1, max_rows // 4)


@pytest.mark.parametrize(("sample_size", "size"), [(6, (6, 6)), ((4, 9), (4, 9))])
def test_what_is_measured_is_a_call_of_the_models_size(
    sample_size: Any, size: tuple[int, int]
) -> None:
    """Latents, timesteps and embeddings have the shapes of a call at the model's own size."""
    network = TimedUnet(lambda rows: 0.2 * rows)
    found = network.measured(sample_size=sample_size)
    assert found.cells == size[0] * size[1]
    assert set(network.calls) == {1, 2, 4}
    for rows, (noisy, timesteps, conditioning) in zip(network.calls, network.inputs, strict=True):
        assert noisy.shape == (rows, 4, *size)
        assert len(timesteps) == rows
        assert conditioning[TEXT].shape == (rows, 7, 8)
        assert noisy.dtype == conditioning[TEXT].dtype == torch.float32


@PURE
@given(found=CAPACITIES, height=SIDE, width=SIDE)
def test_rows_go_with_the_cells(found: Capacity, height: int, width: int) -> None:
    """The rows of any size have at most as many cells as the measured rows, or are one.

    They are as many as that allows, and at most `max_rows`.
    """
    rows, cells = found.limit(height, width), height * width
    assert 1 <= rows <= found.max_rows
    assert rows == 1 or rows * cells <= found.rows * found.cells
    assert rows == found.max_rows or (rows + 1) * cells > found.rows * found.cells
    assert found.limit(width, height) == rows
    assert found.limit(height + 1, width) <= rows


@PURE
@given(found=CAPACITIES, height=SIDE, width=SIDE, rows=st.integers(2, 64), other=SIDE)
def test_what_did_not_fit_is_not_tried_again(
    found: Capacity, height: int, width: int, rows: int, other: int
) -> None:
    """After an out of memory the limit for its size is lower, or 1; no other limit rises."""
    rows = min(rows, found.limit(height, width))
    less = found.halved(rows, height, width)
    assert less.limit(height, width) >= 1
    assert less.limit(height, width) < max(2, rows)
    assert less.limit(other, other) <= found.limit(other, other)


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


def after(calls: int, found: Capacity) -> Capacity:
    """The capacity after so many calls that fitted."""
    for _ in range(calls):
        found = found.after_call()
    return found


def test_a_lowered_limit_grows_back_carefully() -> None:
    """A lowered limit grows by a quarter after 100 calls that fit, or 200 if it failed again."""
    halved = Capacity(16, 64).halved(16, 8, 8)
    for wait, lowered in ((100, halved), (200, after(100, halved).halved(10, 8, 8))):
        rows = lowered.rows
        for step in range(3):
            assert after(wait * step + wait - 1, lowered).rows == rows * 1.25**step
            assert after(wait * step + wait, lowered).rows == rows * 1.25 ** (step + 1)


@pytest.mark.parametrize(("fitted", "wait"), [(99, 200), (100, 100)])
def test_measured_rows_are_trusted_after_one_more_wait(fitted: int, wait: int) -> None:
    """Until 100 calls have fitted at the measured rows, a failure counts as one after growth."""
    back = after(400 + fitted, Capacity(16, 64).halved(16, 8, 8))
    assert back.rows == 16
    again = back.halved(16, 8, 8)
    assert after(wait - 1, again).rows == 8
    assert after(wait, again).rows == 10


@pytest.mark.parametrize(("first", "calls"), [(8, 1000), (64, 1900)])
def test_one_incident_is_one(first: int, calls: int) -> None:
    """Calls that fail one after the other, each with half the rows, down to one, are one failure.

    From one row back to 8 it takes 1,000 calls, to 64 1,900: ten and 19 times 100.
    """
    whole = Capacity(first, 64)
    found, rows = whole, first
    while rows:
        found = found.halved(rows, 8, 8)
        rows //= 2
    assert found.rows == 1
    assert after(calls - 1, found).limit(8, 8) < first
    assert after(calls, found).limit(8, 8) == first
    assert after(calls + 100, found) == whole


def test_what_never_fits_is_tried_ever_more_rarely() -> None:
    """Where the measured rows do not fit any more, tries are twice as many calls apart each time.

    Up to 10,000 for each step by a quarter, of which there are four from a half.
    """
    found, failed_at = Capacity(16, 64), list[int]()
    for call in range(400_000):
        if found.limit(8, 8) == 16:
            failed_at.append(call)
            found = found.halved(16, 8, 8)
        found = found.after_call()
    pauses = [later - earlier for earlier, later in pairwise(failed_at)]
    assert pauses == [min(400 * 2**number, 40_000) for number in range(len(pauses))]


@PURE
@given(found=CAPACITIES, height=SIDE, width=SIDE, failures=st.lists(SIDE, max_size=12))
def test_no_incident_lasts(found: Capacity, height: int, width: int, failures: list[int]) -> None:
    """Whatever fails, a row is left, and 2,600 calls later all is as it was.

    It takes 25 steps to 64 rows from a row of a quarter of the measured cells, here the smallest.
    """
    half = (round(found.cells**0.5) + 1) // 2
    height, width = max(height, half), max(width, half)
    lowered = found
    for rows in failures:
        lowered = lowered.halved(rows, height, width)
        assert lowered.limit(height, width) >= 1
        assert lowered.rows >= min(1.0, height * width / found.cells)
    assert after(2_600, lowered) == found


def test_a_limit_that_fitted_stays() -> None:
    """Calls that fit change nothing of a capacity that was never lowered."""
    found = Capacity(16, 64)
    assert found.after_call() is found


@pytest.mark.parametrize(
    ("text", "is_memory"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("GET was unable to find an engine to execute this computation", True),
        ("Unable to find a valid cuDNN algorithm to run convolution", True),
        ("The size of tensor a (3) must match the size of tensor b (4)", False),
    ],
)
def test_what_counts_as_out_of_memory(text: str, is_memory: bool) -> None:
    """Torch's own error and libraries' errors about a workspace count as out of memory."""
    assert device_errors.is_out_of_memory(RuntimeError(text)) is is_memory
    assert not device_errors.is_out_of_memory(ValueError(text))
