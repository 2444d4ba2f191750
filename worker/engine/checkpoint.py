"""What a job leaves so that another attempt goes on from there: one safetensors file of tensors.

Nothing but tensors is taken from a file. What else a scheduler remembers follows from how many
evaluations it has done: a new one does as many on zeros, and what it then holds says which tensors
belong where, and of which shape and type. So a file sets no attribute that diffusers did not set.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import torch

from worker.engine import safetensors_io

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.engine.image_state import ImageState
    from worker.engine.job import Job
    from worker.engine.samplers import SamplerState

logger = logging.getLogger(__name__)

#: Of the file; another number is not read.
FORMAT = 1
#: Fields of a job that its latents do not depend on.
_BESIDE_THE_LATENTS = frozenset(
    {"id", "max_images", "output_type", "preview_every", "checkpoint_every", "checkpoint"}
)
#: IPNDM keeps every output; a step looks at its own and at so many before it.
_IPNDM_OUTPUTS = 3
#: The Runge-Kutta steps of PNDM add to it in place; every other tensor of a scheduler is replaced.
_ADDED_TO = "cur_model_output"


class Unusable(Exception):
    """Why a job can't go on from a checkpoint, in words for the log."""


@dataclass(frozen=True)
class Snapshot:
    """Where a job stood between two rounds; what comes after changes nothing in it."""

    #: Whole steps of every picture.
    step: int
    lanes: tuple[ImageState, ...]
    #: Of each lane, as `_state` names them; on the device.
    states: tuple[dict[str, torch.Tensor], ...]
    evaluations: tuple[int, ...]

    def serialised(self) -> bytes:
        """The file. Waits for the device, so this is done beside the engine."""
        header = _identity(self.lanes) | {"evaluations": self.evaluations}
        return safetensors_io.pack(header, _numbered(self.states))


def capture(lanes: Sequence[ImageState]) -> Snapshot:
    """Where these lanes stand after their last whole evaluations; copies no picture."""
    return Snapshot(
        step=min(lane.steps for lane in lanes),
        lanes=tuple(lanes),
        states=tuple(_state(lane) for lane in lanes),
        evaluations=tuple(lane.evaluations for lane in lanes),
    )


def resume(data: bytes, lanes: Sequence[ImageState]) -> list[ImageState] | None:
    """The lanes of the same job as they were left in `data`; `lanes` are new, and stay so.

    None, and a warning with the reason, where `data` is of no use. Raises nothing.
    """
    try:
        return _resumed(data, lanes)
    except Exception as error:  # noqa: BLE001  # whatever is wrong with it, the job can start anew
        known = isinstance(error, Unusable)
        why = str(error) if known else f"it can't be read: {error!r:.200}"
        job = lanes[0].job.id
        logger.warning("job %s starts anew, its checkpoint is of no use: %s", job, why)
        return None


def _resumed(data: bytes, lanes: Sequence[ImageState]) -> list[ImageState]:
    header, held = safetensors_io.unpack(data)
    for name, here in _identity(lanes).items():
        if (found := header.get(name)) != here:
            raise Unusable(f"its {name} is {found!r:.80}, here it is {here!r:.80}")
    counts = _counts(header.get("evaluations"), len(lanes), len(lanes[0].sampling.levels))
    resumed = [_rehearsed(lane, count) for lane, count in zip(lanes, counts, strict=True)]
    states = [_state(lane) for lane in resumed]
    expected = _numbered(states)
    if odd := sorted(expected.keys() ^ held.keys()):
        raise Unusable(f"it lacks tensors or has more than it should: {odd!r:.80}")
    for name, like in expected.items():
        if (found := _kind(held[name])) != (here := _kind(like)):
            raise Unusable(f"its {name} is {found}, here it is {here}")
    for number, (lane, state) in enumerate(zip(resumed, states, strict=True)):
        _put(lane, {name: held[f"{number}.{name}"] for name in state})
    return resumed


def _counts(found: Any, pictures: int, most: int) -> list[int]:  # noqa: ANN401  # JSON
    """Evaluations of each picture."""
    counts = found if isinstance(found, list) else []
    if len(counts) != pictures or not all(type(n) is int and 0 <= n <= most for n in counts):
        raise Unusable(f"its evaluations are {found!r:.80}, of {most} for {pictures} pictures")
    return counts


def _rehearsed(lane: ImageState, evaluations: int) -> ImageState:
    """A copy of a new lane that has done so many evaluations, all of nothing."""
    rehearsed = dataclasses.replace(
        lane,
        sampling=copy.deepcopy(lane.sampling),
        generator=torch.Generator("cpu"),
        latents=torch.zeros_like(lane.latents),
    )
    nothing = torch.zeros_like(lane.latents, dtype=torch.float32)
    while rehearsed.evaluations < evaluations:
        rehearsed.advance(nothing, rehearsed.noisy())
    rehearsed.clean = None  # or zeros would be shown
    return rehearsed


def _state(lane: ImageState) -> dict[str, torch.Tensor]:
    """The tensors that a lane has computed, by name. A half-done evaluation has none yet."""
    state = {"latents": lane.latents, "generator": lane.generator.get_state()}
    scheduler = lane.sampling.scheduler
    for name, value in vars(scheduler).items():
        if isinstance(value, list):  # most are changed in place, so its elements are what is kept
            unread = len(value) - _IPNDM_OUTPUTS if _keeps_all(scheduler) else 0
            state |= {
                f"scheduler.{name}.{number}": each
                for number, each in enumerate(value)
                if number >= unread and isinstance(each, torch.Tensor)
            }
        elif isinstance(value, torch.Tensor) and name not in lane.sampling.constants:
            state[f"scheduler.{name}"] = value.clone() if name == _ADDED_TO else value
    return state


def _keeps_all(scheduler: Any) -> bool:  # noqa: ANN401  # diffusers has no base
    return isinstance(scheduler, diffusers.IPNDMScheduler)


def _put(lane: ImageState, state: Mapping[str, torch.Tensor]) -> None:
    """Give a rehearsed lane its tensors, each to the device of the one that it takes the place of.

    The names are those of the lane's own `_state`.
    """
    scheduler = lane.sampling.scheduler
    for path, tensor in state.items():
        match path.split("."):
            case ["latents"]:
                lane.latents = tensor.to(lane.latents.device)
            case ["generator"]:
                lane.generator.set_state(tensor)
            case [_, name]:
                setattr(scheduler, name, tensor.to(getattr(scheduler, name).device))
            case [_, name, number]:
                held = getattr(scheduler, name)
                held[int(number)] = tensor.to(held[int(number)].device)


def _numbered(states: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of all lanes, the number of its lane before each name."""
    return {
        f"{number}.{name}": tensor
        for number, state in enumerate(states)
        for name, tensor in state.items()
    }


def _kind(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _identity(lanes: Sequence[ImageState]) -> dict[str, Any]:
    """What must be the same, or the rest of the picture would be another one's; JSON."""
    job, sampling, latents = lanes[0].job, lanes[0].sampling, lanes[0].latents
    return {
        "format": FORMAT,
        "torch": str(torch.__version__),
        "diffusers": str(diffusers.__version__),
        "scheduler": sampling.name,
        "steps": job.num_inference_steps,
        "seeds": [lane.seed for lane in lanes],
        "dtype": str(latents.dtype),
        "shape": list(latents.shape),
        "sampler's settings": _settings(sampling),
        "request": _request(job),
    }


def _settings(sampling: SamplerState) -> str:
    """Digest of what the sampler was made with, the model's own noise schedule among it."""
    # Names with an underscore are diffusers' notes, some of them in the order of a set.
    config = sorted(
        (name, repr(value))
        for name, value in sampling.scheduler.config.items()
        if not name.startswith("_")
    )
    return _hash(repr((sampling.kinds, config)).encode())


def _request(job: Job) -> str:
    """Digest of what was asked for."""
    parts: list[bytes] = []
    for each in dataclasses.fields(job):
        if each.name not in _BESIDE_THE_LATENTS:
            value = getattr(job, each.name)
            parts += [
                each.name.encode(),
                value if isinstance(value, bytes) else repr(value).encode(),
            ]
    return _hash(*parts)


def _hash(*parts: bytes) -> str:
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        total.update(part)
    return total.hexdigest()
