"""Checkpoints: the state of a job's images as one safetensors file, for a later attempt.

Only tensors are read from a file. The rest of a scheduler's state depends only on its number of
evaluations: a new scheduler runs as many on zeros, and the tensors that it then has define the
names, types and shapes that the file must have. So a file can set no other attribute.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import diffusers
import torch

from worker.engine import safetensors_io
from worker.engine.checkpoint_identity import identity
from worker.engine.device import device_memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.engine.image_state import ImageState

logger = logging.getLogger(__name__)

#: IPNDM keeps all UNet outputs, but a step reads only the current one and the three before.
_IPNDM_OUTPUTS = 3
#: PNDM's Runge-Kutta steps change this tensor in place; all others are replaced by new ones.
_CHANGED_IN_PLACE = "cur_model_output"


class Unusable(Exception):
    """Why a job can't resume from a checkpoint, for the log."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a job between two rounds. Later rounds do not change it."""

    #: Steps that every image has completed.
    step: int
    images: tuple[ImageState, ...]
    #: Tensors of each image on the device, named as by `_tensors`.
    tensors: tuple[dict[str, torch.Tensor], ...]
    evaluations: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """The file's content. Waits for the device, so call it on the side thread."""
        header = identity(self.images) | {"evaluations": self.evaluations}
        return safetensors_io.pack(header, _numbered(self.tensors))


def capture(images: Sequence[ImageState]) -> Snapshot:
    """The state after the last complete evaluation of each image; copies no latents."""
    return Snapshot(
        step=min(image.steps for image in images),
        images=tuple(images),
        tensors=tuple(_tensors(image) for image in images),
        evaluations=tuple(image.evaluations for image in images),
    )


def resume(data: bytes, images: Sequence[ImageState]) -> list[ImageState]:
    """The images as they were saved in `data`, or `images` themselves where it is unusable.

    `images` are those of the same job, new; they are not changed. Logs why a checkpoint is
    unusable, and raises nothing.
    """
    try:
        return _resumed(data, images)
    except Exception as error:  # noqa: BLE001  # malformed files raise anything
        reason = error if isinstance(error, Unusable) else f"cannot be read: {error!r:.200}"
        job_id = images[0].job.id
        logger.warning("job %s restarts from step 0, unusable checkpoint: %s", job_id, reason)
        return list(images)


def _resumed(data: bytes, images: Sequence[ImageState]) -> list[ImageState]:
    header, saved = safetensors_io.unpack(data)
    for name, here in identity(images).items():
        if (found := header.get(name)) != here:
            raise Unusable(f"its {name} is {found!r:.80}, not {here!r:.80}")
    counts = header.get("evaluations")
    most = len(images[0].sampler.levels)
    if not (
        isinstance(counts, list)
        and len(counts) == len(images)
        and all(type(count) is int and 0 <= count <= most for count in counts)
    ):
        raise Unusable(f"its evaluations are {counts!r:.80}, of {most} for {len(images)} images")
    resumed = [_replayed(image, count) for image, count in zip(images, counts, strict=True)]
    expected = [_tensors(image) for image in resumed]
    _check(saved, _numbered(expected))
    for index, (image, tensors) in enumerate(zip(resumed, expected, strict=True)):
        _restore(image, {name: saved[f"{index}.{name}"] for name in tensors})
    return resumed


def _check(saved: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise `Unusable` unless both have the same names, types and shapes."""
    if names := sorted(expected.keys() ^ saved.keys()):
        raise Unusable(f"it has missing or unexpected tensors: {names!r:.80}")
    for name, tensor in expected.items():
        found, here = (f"{each.dtype} {tuple(each.shape)}" for each in (saved[name], tensor))
        if found != here:
            raise Unusable(f"its {name} is {found}, not {here}")


def _replayed(image: ImageState, evaluations: int) -> ImageState:
    """A copy of a new image after that many evaluations on zeros."""
    replayed = dataclasses.replace(
        image,
        sampler=image.sampler.copy(),
        generator=torch.Generator("cpu"),
        latents=torch.zeros_like(image.latents),
    )
    zeros = torch.zeros_like(image.latents, dtype=torch.float32)
    while replayed.evaluations < evaluations:
        replayed.step(zeros, replayed.unet_input(), zeros)
    replayed.scaled_x0 = None  # it would make a preview of zeros
    return replayed


def _tensors(image: ImageState) -> dict[str, torch.Tensor]:
    """The tensors of an image's state by name, without those of an incomplete evaluation."""
    tensors = {"latents": image.latents, "generator": image.generator.get_state()}
    scheduler = image.sampler.scheduler
    for name, value in vars(scheduler).items():
        if isinstance(value, list):  # schedulers change most lists in place, but not their tensors
            is_ipndm = isinstance(scheduler, diffusers.IPNDMScheduler)
            first = len(value) - _IPNDM_OUTPUTS if is_ipndm else 0
            tensors |= {
                f"scheduler.{name}.{index}": each
                for index, each in enumerate(value)
                if index >= first and isinstance(each, torch.Tensor)
            }
        elif isinstance(value, torch.Tensor) and name not in image.sampler.constants:
            tensors[f"scheduler.{name}"] = value.clone() if name == _CHANGED_IN_PLACE else value
    return tensors


def _restore(image: ImageState, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replace the tensors of a replayed image, each on its device, by those of its `_tensors`."""
    scheduler = image.sampler.scheduler
    for path, tensor in tensors.items():
        match path.split("."):
            case ["latents"]:
                image.latents = device_memory.to_device(tensor, image.latents.device)
            case ["generator"]:
                image.generator.set_state(tensor)
            case [_, name]:
                device = getattr(scheduler, name).device
                setattr(scheduler, name, device_memory.to_device(tensor, device))
            case [_, name, index]:
                held = getattr(scheduler, name)
                device = held[int(index)].device
                held[int(index)] = device_memory.to_device(tensor, device)


def _numbered(tensors: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of all images, the index of the image before each name."""
    return {f"{index}.{name}": each[name] for index, each in enumerate(tensors) for name in each}
