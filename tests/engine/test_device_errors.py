"""Which errors of a device count as out of memory."""

from __future__ import annotations

import pytest

from worker.engine.device import device_errors


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
