"""The memory of a GPU: its size in bytes, and copies to it for which the host does not wait."""

from __future__ import annotations

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to a device. From pinned memory the host does not wait for it.

    One that is on the device is returned as it is.
    """
    if tensor.device.type == device.type:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def total_bytes(device: torch.device) -> int:
    """Size of the device's memory."""
    return torch.cuda.mem_get_info(device)[1]


def free_bytes(device: torch.device) -> int:
    """Free memory, including what torch has reserved and does not use."""
    unused_bytes = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused_bytes


def growth_bytes(device: torch.device) -> int:
    """Peak of torch's memory since it was reset, less what is allocated now."""
    return torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
