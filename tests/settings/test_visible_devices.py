"""`CUDA_VISIBLE_DEVICES` is read as CUDA reads it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.settings.gpus import TWO
from tests.settings.nvml import H100, Driver
from worker import devices
from worker.devices import Gpu
from worker.supervisor.supervisor import worker_environments


@pytest.mark.parametrize(
    ("value", "workers"),
    [
        # Indices. The first that is invalid ends the list, as NVIDIA documents.
        ("1", ["gpu1"]),
        ("1,0", ["gpu1", "gpu0"]),
        ("0,-1,1", ["gpu0"]),
        ("-1,0", ["cpu"]),
        ("7", ["cpu"]),
        ("0,7,1", ["gpu0"]),
        ("", ["cpu"]),
        (" ", ["cpu"]),
        ("none", ["cpu"]),
        ("NoDevFiles", ["cpu"]),
        ("0,,1", ["gpu0"]),
        (",0", ["cpu"]),
        # As read by C's strtol.
        (" 1 , 0 ", ["gpu1", "gpu0"]),
        ("+1", ["gpu1"]),
        ("1gpu,0x1", ["gpu1", "gpu0"]),
        ("1.5", ["gpu1"]),
        ("01", ["gpu1"]),
        # A device that is named twice hides all.
        ("0,0", ["cpu"]),
        ("1,0,1", ["cpu"]),
        ("0,-1,0", ["gpu0"]),
        ("0,00", ["cpu"]),
        # UUIDs, whole or cut short; the first that is unknown or ambiguous ends the list.
        ("GPU-aaaa", ["gpu0"]),
        ("GPU-bbbb,GPU-a", ["gpu1", "gpu0"]),
        ("GPU-bb", ["gpu1"]),
        ("GPU-", ["cpu"]),
        ("GPU-aaaa,GPU-x,GPU-bbbb", ["gpu0"]),
        ("gpu-aaaa", ["cpu"]),
        ("aaaa", ["cpu"]),
        ("GPU-aaaa,GPU-aaaa", ["cpu"]),
        ("GPU-aaaa,GPU-aa", ["cpu"]),
        # The first name says what the list holds.
        ("GPU-aaaa,1", ["gpu0"]),
        ("1,GPU-aaaa", ["gpu1"]),
        ("GPU-aaaa,MIG-aaaa", ["gpu0"]),
    ],
)
def test_cuda_visible_devices_is_obeyed(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, value: str, workers: list[str]
) -> None:
    """The start uses the GPUs that CUDA would see, in that order."""
    driver.has(*TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert list(worker_environments("auto", [])) == workers
    assert devices.resolve("auto") == ("cpu" if workers == ["cpu"] else "cuda:0")


@pytest.mark.parametrize("value", ["GPU-aaaaa", "GPU-AAAA", "GPU-x,GPU-aaaa", " GPU-nope"])
def test_an_unknown_uuid_stops_the_start(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """An unknown UUID of a GPU stops the start, as CUDA would see no device."""
    driver.has(*TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with pytest.raises(RuntimeError, match="names no GPU; the driver lists GPU-aaaa, GPU-bbbb"):
        worker_environments("auto", [])


NAMES = st.sampled_from(
    ["0", "1", " 0", "1 ", "-1", "+1", "1x", "x", "", "GPU-aaaa", "GPU-bbbb", "GPU-a", "GPU-bb",
     "GPU-b", "GPU-"]
)  # fmt: skip


@pytest.mark.slow  # it imports torch; the tables above are its fast form
@hypothesis_settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(NAMES, min_size=1, max_size=4))
def test_cuda_visible_devices_is_read_as_torch_reads_it(names: list[str]) -> None:
    """The result is that of torch, which has its own reading instead of a call to CUDA.

    But for a name that is repeated behind one that is invalid: there torch sees no device.
    """
    from torch.cuda import _parse_visible_devices, _transform_uuid_to_ordinals

    value, uuids = ",".join(names), ["GPU-aaaa", "GPU-bbbb", "GPU-bbcc"]
    gpus = [Gpu(index, uuid, H100) for index, uuid in enumerate(uuids)]
    valid = list(itertools.takewhile(lambda name: devices.visible(gpus, name), names))
    assume(len(valid) == len(names) or len(set(names)) == len(names))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", value)
        expected = list(_parse_visible_devices())
    if expected and isinstance(expected[0], str):
        expected = list(_transform_uuid_to_ordinals([str(each) for each in expected], uuids))
    assert [gpu.index for gpu in devices.visible(gpus, value)] == expected
