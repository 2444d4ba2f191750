"""Model CPU offload: networks share a device that may not hold all of their weights at once.

A network is moved to the device before a call, and stays there until another needs its place. Its
weights stay on the host as well, so that nothing is copied when it leaves. Knows no job.
"""

from __future__ import annotations

import itertools
import logging
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from worker.engine.device import device_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from worker.engine.pipeline import Pipeline

logger = logging.getLogger(__name__)

#: Memory that is kept free for a network's calls, beside its weights: this share of the device's,
#: but at most so many bytes: on a large device other processes may not leave more.
WORK_SHARE, MAX_WORK_BYTES = 0.1, 2 * 2**30
#: Dimensions of a convolution's weights.
_CONVOLUTION = 4


class Network:
    """One network of a model: its weights on the host, and whether they are on the device too."""

    def __init__(
        self,
        module: torch.nn.Module,
        memory_format: torch.memory_format = torch.preserve_format,
        pin: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.pin_memory,
    ) -> None:
        """It is on the host. On the device its convolutions are in `memory_format`."""
        self.is_on_device = False
        #: Memory that a call needs beside the weights, once measured.
        self.work_bytes = 0
        self._module, self._format, self._pin = module, memory_format, pin
        #: What the device's copies were made of. By the tensor, not by its name: LoRA weights that
        #: are loaded meanwhile rename others, and those that leave must be forgotten.
        self._host = WeakTensorKeyDictionary()
        self._is_pinned = False

    @property
    def weights_bytes(self) -> int:
        """Size of its weights in their present precision."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def to_device(self, device: torch.device) -> None:
        """Copy the weights to the device. From pinned memory the host does not wait for it.

        Raises what the device raises, out of memory; then nothing has changed.
        """
        copies = [self._copied(tensor.data, device) for tensor in self._tensors()]
        for tensor, copy in zip(self._tensors(), copies, strict=True):
            self._host[tensor], tensor.data = tensor.data, copy
        self.is_on_device = True

    def to_host(self) -> None:
        """Drop the device's copy.

        The first time the host's weights are pinned, since what left once moves again; those of
        LoRA that is loaded later are not.
        """
        for tensor in self._tensors():
            # A VAE that decodes in float32 from now on has another type than what the host kept;
            # of LoRA weights that were loaded meanwhile it has none.
            kept = self._host.get(tensor)
            changed = kept is None or kept.dtype != tensor.dtype
            tensor.data = tensor.data.to("cpu") if changed else kept
        self._host.clear()
        self.is_on_device = False
        self._pin_once()

    def _copied(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        layout = self._format if tensor.dim() == _CONVOLUTION else torch.preserve_format
        return tensor.to(device, non_blocking=True, memory_format=layout)

    def _pin_once(self) -> None:
        if self._is_pinned:
            return
        self._is_pinned = True
        try:
            for tensor in self._tensors():
                tensor.data = self._pin(tensor.data)
        except RuntimeError as error:  # the host has too little memory to lock
            logger.warning("weights are not pinned, moving them takes longer: %s", error)

    def _tensors(self) -> Iterator[torch.Tensor]:
        return itertools.chain(self._module.parameters(), self._module.buffers())


class Residency:
    """Which networks are on one device, of all models of the process. For one thread."""

    def __init__(
        self, device: torch.device, free_bytes: Callable[[], int], work_bytes: int, *, keeps: bool
    ) -> None:
        """`work_bytes` are left free for each network's calls; `free_bytes` asks the device.

        Unless it `keeps` networks, one leaves the device as soon as another is needed.
        """
        self.keeps = keeps
        self._device, self._free_bytes, self._work_bytes = device, free_bytes, work_bytes
        #: Least recently used first.
        self._present: list[Network] = []

    def need(self, network: Network) -> None:
        """Have a network on the device, with memory for its calls if others can make room."""
        if self._present and self._present[-1] is network:
            return  # asking for the free memory in each call of the UNet would take time
        others = [each for each in self._present if each is not network]
        while others and not self.has_room(network):
            self._evict(others.pop(0))
        if not network.is_on_device:
            with torch.inference_mode(mode=False):  # weights are no inference tensors
                network.to_device(self._device)
        self._present = [*others, network]

    def has_room(self, network: Network) -> bool:
        """Whether the network can be used while the others stay on the device."""
        weights_bytes = 0 if network.is_on_device else network.weights_bytes
        needed_bytes = weights_bytes + max(self._work_bytes, network.work_bytes)
        return self.keeps and self._free_bytes() >= needed_bytes

    def clear(self) -> None:
        """Move all networks to the host."""
        for network in list(self._present):
            self._evict(network)

    def _evict(self, network: Network) -> None:
        self.forget(network)
        network.to_host()
        torch.cuda.empty_cache()

    def forget(self, network: Network) -> None:
        """Drop a network that is not used any more."""
        self._present = [each for each in self._present if each is not network]


@cache
def residency_on(device: torch.device, *, keeps: bool) -> Residency:
    """The one of this process for a GPU, whose memory all of its models share."""
    work_bytes = min(int(device_memory.total_bytes(device) * WORK_SHARE), MAX_WORK_BYTES)
    return Residency(device, lambda: device_memory.free_bytes(device), work_bytes, keeps=keeps)


def networks_of(pipe: Pipeline, names: Iterable[str]) -> dict[str, Network]:
    """The networks of a pipeline that take turns, on the host.

    On the device convolutions are in channels_last. The safety checker, which another thread runs,
    stays there.
    """
    return {name: Network(getattr(pipe, name), torch.channels_last) for name in names}
