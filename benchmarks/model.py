"""Which model a benchmark runs, where and in which precision. Imports no torch."""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from benchmarks import process
from worker.config.models import SHIPPED_MODEL, Dtype, ModelSpec

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    import torch


@dataclass(frozen=True)
class Model:
    """A folder in diffusers' layout and the device that runs it."""

    name: str
    path: Path
    device: str
    #: Pixels; None is the model's own.
    size_px: int | None
    #: Of the engine, the daemon, and a UNet that is measured alone.
    engine_dtype: Dtype = "auto"

    @property
    def usual_dtype(self) -> Literal["float32", "float16"]:
        """In which upstream's pipeline is run: float32 on the CPU, float16 on a GPU."""
        return "float32" if self.device == "cpu" else "float16"

    @property
    def alone_dtype(self) -> Dtype:
        """Of a UNet that is measured alone."""
        return self.usual_dtype if self.engine_dtype == "auto" else self.engine_dtype

    @property
    def dtype(self) -> torch.dtype:
        """`alone_dtype` as torch's object."""
        import torch  # noqa: PLC0415  # the parent of the sides loads none

        dtype: torch.dtype = getattr(torch, self.alone_dtype)
        return dtype

    @property
    def spec(self) -> ModelSpec:
        """For the engine and the daemon."""
        return ModelSpec(path=str(self.path), dtype=self.engine_dtype, safety_checker=False)

    @property
    def tokens(self) -> int:
        """Length of a prompt as the UNet sees it."""
        return int(self._config("text_encoder")["max_position_embeddings"])

    @property
    def latent_side(self) -> int:
        """Height and width of the latents."""
        if self.size_px is None:
            return int(self._config("unet")["sample_size"])
        halvings = len(self._config("vae")["block_out_channels"]) - 1
        return self.size_px >> halvings

    def _config(self, part: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.path / part / "config.json").read_text())
        return config


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which model, and where."""
    parser.add_argument(
        "--sd15",
        action="store_true",
        help="Stable Diffusion 1.5's size with random weights, in place of the bundled model",
    )
    parser.add_argument(
        "--scale", type=int, default=1, help="divides the widths of --sd15, for a smoke test"
    )
    parser.add_argument("--size-px", type=int, help="height and width; the model's own unless set")
    parser.add_argument(
        "--device", help="cpu or cuda; cpu unless set, but cuda for --sd15 at its full size"
    )
    parser.add_argument(
        "--dtype",
        choices=get_args(Dtype),
        default="auto",
        help="precision of our side; the others have float32 on the CPU, float16 on a GPU",
    )


@contextmanager
def chosen(arguments: argparse.Namespace) -> Iterator[Model]:
    """The model of the options; that of `--sd15` is built in a folder that goes again."""
    full = arguments.sd15 and arguments.scale == 1
    device = arguments.device or ("cuda" if full else "cpu")
    if full and device == "cpu":
        message = "--sd15 needs a GPU; --scale 8 makes a small one for the CPU"
        raise SystemExit(message)
    if device != "cpu" and not process.once("torch", _has_cuda):
        message = "torch finds no CUDA device here"
        raise SystemExit(message)
    if not arguments.sd15:
        yield Model("tiny-shapes", SHIPPED_MODEL, device, arguments.size_px, arguments.dtype)
        return
    name = "Stable Diffusion 1.5's configuration, random weights"
    if arguments.scale > 1:
        name += f", widths / {arguments.scale}"
    with tempfile.TemporaryDirectory(prefix="sag-benchmark-") as folder:
        model = Model(name, Path(folder), device, arguments.size_px, arguments.dtype)
        process.once("the model", _build, model, arguments.scale)
        yield model


def silence_libraries() -> None:
    """No progress bars and no warnings of diffusers and transformers in this process."""
    import diffusers  # noqa: PLC0415  # as above: they bring torch
    import transformers  # noqa: PLC0415  # as above

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()


def _has_cuda() -> bool:
    import torch  # noqa: PLC0415  # as above

    return torch.cuda.is_available()


def _build(model: Model, scale: int) -> None:
    import torch  # noqa: PLC0415  # as above

    silence_libraries()
    from benchmarks import sd15  # noqa: PLC0415  # its import warns, too

    sd15.build(model.path, scale, getattr(torch, model.usual_dtype))
