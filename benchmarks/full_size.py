"""`python -m benchmarks.full_size`: bytes of a published model's size, counted without memory.

Networks are built on torch's meta device: shapes without data. Weights are in float16, but the
autoencoder of Stable Diffusion XL in float32. The peak of a UNet call is what is alive at once
beyond the weights, as `benchmarks.cuda_dry_run` counts it.
"""

from __future__ import annotations

import argparse
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import sd15, sdxl
from benchmarks.cuda_dry_run import operators
from benchmarks.cuda_dry_run.tally import Memory
from worker.engine.denoising.sag_attention import MID_BLOCK, SagAttnProcessor, capture_attention
from worker.engine.families.conditioning import stack
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.families.stable_diffusion_xl import StableDiffusionXL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from worker.engine.families.family import Family

ROWS = (1, 2, 4, 8, 16, 24)
_MIB = 2**20


@dataclass(frozen=True)
class Model:
    """A published model's size."""

    name: str
    family: Family
    build: Callable[[], Any]
    size_px: int
    vae_dtype: torch.dtype


MODELS = {
    "sd15": Model(
        "Stable Diffusion 1.5",
        StableDiffusion(),
        lambda: sd15.pipeline(vocabulary=sd15.VOCABULARY),
        512,
        torch.float16,
    ),
    "sdxl": Model(
        "Stable Diffusion XL",
        StableDiffusionXL(),
        lambda: sdxl.pipeline(vocabulary=sd15.VOCABULARY),
        sdxl.SIZE_PX,
        torch.float32,
    ),
}


@dataclass(frozen=True)
class Sums:
    """Bytes that SAG reads of one row: what is kept, and the map that is not."""

    positions: int
    heads: int

    @property
    def kept_bytes(self) -> int:
        """The column sums, in float32."""
        return self.positions * torch.float32.itemsize

    @property
    def map_bytes(self) -> int:
        """Attention of all heads in float16."""
        return self.heads * self.positions**2 * torch.float16.itemsize


class Meta(TorchDispatchMode):
    """Counts the storages that operators allocate on the meta device. Use it in inference mode."""

    def __init__(self, there: Iterable[torch.Tensor]) -> None:
        """What is `there` before, such as weights, and views of it are not counted."""
        super().__init__()
        self.memory = Memory(0)
        self._storages = {_key(tensor.untyped_storage()) for tensor in there}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  # torch's signature
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # torch's signature
        """Run one operator; fused attention is one, and keeps no map."""
        del types
        kwargs = kwargs or {}
        with self:
            result = operators.parts(func, args, kwargs)
        if result is not NotImplemented:
            return result
        result = operators.run(func, args, kwargs)
        for tensor in operators.tensors((result,), {}):
            self._seen(tensor.untyped_storage())
        return result

    def _seen(self, storage: torch.UntypedStorage) -> None:
        key = _key(storage)
        if key not in self._storages:
            self._storages.add(key)
            self.memory.taken(storage.nbytes())
            weakref.finalize(storage, self._freed, key, storage.nbytes())

    def _freed(self, key: int, size_bytes: int) -> None:
        self._storages.discard(key)
        self.memory.freed(size_bytes)


def _key(storage: torch.UntypedStorage) -> int:
    return storage._cdata  # type: ignore[no-any-return]  # noqa: SLF001  # as torch.multiprocessing has it


def pipeline(model: Model) -> Any:  # noqa: ANN401  # diffusers has no types
    """The model on the meta device, in the precision of a GPU."""
    with torch.device("meta"):
        made = model.build()
    for name in model.family.networks:
        dtype = model.vae_dtype if name == "vae" else torch.float16
        getattr(made, name).to(dtype).eval()
    return made


def weights_bytes(network: torch.nn.Module) -> int:
    """Parameters and buffers."""
    held = (*network.parameters(), *network.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def call_bytes(model: Model, pipe: Any, rows: int, sag_rows: int, size_px: int) -> int:  # noqa: ANN401  # diffusers has no types
    """Most bytes alive at once in a UNet call beyond weights and inputs; SAG listens to some."""
    unet, side = pipe.unet, size_px // pipe.vae_scale_factor
    like: dict[str, Any] = {"device": "meta", "dtype": torch.float16}
    with torch.inference_mode():
        noisy = torch.empty(rows, unet.config.in_channels, side, side, **like)
        blank = {name: each.to(**like) for name, each in model.family.blank(pipe).items()}
        arguments = model.family.arguments(stack([blank] * rows))
        times, processor = torch.empty(rows, device="meta"), SagAttnProcessor()
        there = (noisy, times, *arguments.values(), *unet.parameters(), *unet.buffers())
        capture = capture_attention(unet, processor, sag_rows, MID_BLOCK)
        with Meta(operators.tensors(there, {})) as meta, capture:
            unet(noisy, times, **arguments, return_dict=False)
    peak_bytes: int = meta.memory.peak_bytes
    return peak_bytes


def sums(pipe: Any, size_px: int) -> Sums:  # noqa: ANN401  # diffusers has no types
    """Of the self-attention that SAG listens to, for a picture of this size."""
    attention = pipe.unet.get_submodule(MID_BLOCK)
    halvings = sum(1 for block in pipe.unet.down_blocks if block.downsamplers is not None)
    side = size_px // pipe.vae_scale_factor >> halvings
    return Sums(side * side, attention.heads)


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="sdxl")
    parser.add_argument("--size-px", type=int, help="height and width; the model's own unless set")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    arguments = parser.parse_args()
    model = MODELS[arguments.model]
    print(markdown(model, arguments.size_px or model.size_px, arguments.rows))


def markdown(model: Model, size_px: int, rows: Iterable[int]) -> str:
    """Weights by network, calls by rows, and what SAG reads."""
    pipe = pipeline(model)
    parts = {name: getattr(pipe, name) for name in model.family.networks}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    weights = {name: weights_bytes(part) for name, part in parts.items()}
    lines = [f"{model.name}, {size_px} px, torch {torch.__version__}", ""]
    lines += ["| network | parameters | weights, MiB |", "| --- | --: | --: |"]
    lines += [f"| {name} | {counts[name]:,} | {weights[name] / _MIB:,.0f} |" for name in parts]
    total = sum(weights.values())
    lines += [f"| all | {sum(counts.values()):,} | {total / _MIB:,.0f} |", ""]
    lines += [
        "| rows of a UNet call | peak, MiB | with SAG in all rows, MiB |",
        "| --: | --: | --: |",
    ]
    for count in rows:
        plain, sag = (call_bytes(model, pipe, count, each, size_px) for each in (0, count))
        lines.append(f"| {count} | {plain / _MIB:,.0f} | {sag / _MIB:,.0f} |")
    of_row = sums(pipe, size_px)
    told = (
        f"SAG reads {of_row.positions:,} column sums of a row, {of_row.kept_bytes:,} bytes; the map"
        f" of its {of_row.heads} heads would be {of_row.map_bytes / _MIB:,.1f} MiB in float16."
    )
    lines += ["", told]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
