"""The functions of the engine that are counted as calls of their own."""

from __future__ import annotations

import functools
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

from worker.engine import batch, checkpoint, image_state, initial_latents, runner, unet
from worker.engine.loading import adapters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from benchmarks.cuda_dry_run.device import FakeCuda
    from worker.engine.job import Adapters


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _load(*_: object) -> str:
    return "load"


def _measure(*_: object) -> str:
    return "measure rows"


def _encode(_runner: object, jobs: Any) -> str:  # noqa: ANN401  # the engine's
    texts = sum(len(each.prompt_inputs.to_encode) for each in jobs)
    return f"encode, {_number(texts, 'text')}{_with(each.job.loras for each in jobs)}"


def _round(_batch: object, parts: Any) -> str:  # noqa: ANN401  # the engine's
    return f"round, {_number(sum(image.rows for _, image in parts), 'row')}"


def _unet(
    _unet: object,
    noisy: Any,  # noqa: ANN401  # the engine's
    _times: object,
    _conditioning: object,
    loras: unet.CallLoras = unet.NO_LORAS,
    *_: object,
) -> str:
    height, width = noisy.shape[-2:]
    size = "" if height == width else f" of {height} x {width}"
    return f"UNet, {_number(len(noisy), 'row')}{size}{_with(loras.rows)}"


def _with(adapters: Iterable[Adapters]) -> str:
    """What is added to the kind of a call, some of whose rows have adapters."""
    return " with adapters" if any(adapters) else ""


def _source(_model: object, job: Any) -> str:  # noqa: ANN401  # the engine's
    if job.image is None:
        return "encode no picture"
    return "encode a picture" if job.mask_image is None else "encode a picture and its mask"


def _decode(_runner: object, images: Any) -> str:  # noqa: ANN401  # the engine's
    decoded = [each for each in images if each.job.output_type != "latent"]
    return f"decode, {_number(len(decoded), 'image')}"


def _preview(of: Any, *_: object) -> str:  # noqa: ANN401  # the engine's
    return f"preview by the {'map' if of.preview_map else 'decoder'}"


#: Where a function is, its name, and the kind of call for its arguments.
_COUNTED: tuple[tuple[Any, str, Callable[..., str]], ...] = (
    (runner.Runner, "__init__", _load),
    (adapters, "load", lambda *_: "load an adapter"),
    (adapters, "unload", lambda *_: "unload an adapter"),
    (runner.Runner, "encode", _encode),
    (initial_latents, "encode", _source),
    (initial_latents.StartDraw, "start", lambda *_: "draw a start"),
    (batch.Batch, "_evaluate", _round),
    (unet.BatchedUnet, "measure", _measure),
    (unet.BatchedUnet, "_call", _unet),
    (unet.BatchedUnet, "pace", lambda *_: "pace"),
    (image_state.ImageState, "step", lambda image, *_: f"step, {image.sampler.name}"),
    (runner.Runner, "decode", _decode),
    (runner.Runner, "finish", lambda *_: "finish a picture"),
    (runner.Runner, "preview", _preview),
    (checkpoint, "capture", lambda *_: "checkpoint, capture"),
    (checkpoint.Snapshot, "to_bytes", lambda *_: "checkpoint, to bytes"),
    (checkpoint, "resume", lambda _, images: f"resume, {images[0].sampler.name}"),
)


@contextmanager
def counted(device: FakeCuda) -> Iterator[None]:
    """Count each of them as a call while the context lasts."""
    with ExitStack() as stack:
        for owner, name, kind in _COUNTED:
            wrapped = _wrapped(device, getattr(owner, name), kind)
            stack.enter_context(mock.patch.object(owner, name, wrapped))
        yield


def _wrapped(
    device: FakeCuda, function: Callable[..., Any], kind: Callable[..., str]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # any function's
        with device.call(kind(*args)):
            return function(*args, **kwargs)

    return call
