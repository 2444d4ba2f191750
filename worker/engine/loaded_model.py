"""A pipeline on its device, with the family that knows how to use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from worker.engine.denoising.row_adapters import RowAdapters
from worker.engine.denoising.sag_attention import MID_BLOCK

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from worker.engine.device.offload import Network, Residency
    from worker.engine.families.family import Family
    from worker.engine.pipeline import Pipeline


@dataclass(frozen=True)
class LoadedModel:
    """A pipeline on its device."""

    family: Family
    pipeline: Pipeline
    device: str
    #: Mode in use: `none`, `model`, `swap` or `sequential`.
    offload: str
    compiled: bool = False
    #: The self-attention that SAG reads, by its name in the UNet.
    sag_layer: str = MID_BLOCK
    #: With `model` and `swap`: which networks are on the device, and those of this model.
    residency: Residency | None = None
    networks: Mapping[str, Network] = field(default_factory=dict)
    #: LoRA weights that are loaded for the requests that name them.
    adapters: RowAdapters = field(default_factory=RowAdapters)
    #: Whether it has LoRA weights of its own, which one call has at one scale.
    has_lora: bool = False

    @cached_property
    def unet_dtype(self) -> torch.dtype:
        """Precision of the UNet. diffusers walks through all of its parameters to tell it."""
        dtype: torch.dtype = self.pipeline.unet.dtype
        return dtype

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        channels: int = self.pipeline.vae.config.latent_channels
        return channels

    @property
    def takes_mask(self) -> bool:
        """Whether the UNet was made for inpainting: mask and masked picture are inputs."""
        channels: int = self.pipeline.unet.config.in_channels
        return channels > self.latent_channels

    def need(self, name: str) -> None:
        """Have a network on the device, on the engine's thread. One without weights is there."""
        if self.residency is not None and name in self.networks:
            self.residency.need(self.networks[name])

    def must_move(self, name: str) -> bool:
        """Whether `need` would move networks off the device, or its calls move layers."""
        if self.residency is not None:
            return name in self.networks and not self.residency.has_room(self.networks[name])
        return self.offload == "sequential"

    def release(self) -> None:
        """Leave the residency; remove hooks, which are a reference cycle with the pipeline."""
        if self.residency is not None:
            for network in self.networks.values():
                self.residency.forget(network)
        elif self.offload == "sequential":
            self.pipeline.remove_all_hooks()

    def set_work_bytes(self, name: str, work_bytes: int) -> None:
        """Say how much memory a network's calls need beside its weights."""
        if self.residency is not None and name in self.networks:
            self.networks[name].work_bytes = work_bytes
