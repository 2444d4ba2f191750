"""What the check runs: the device, the model's size, how many pictures. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from benchmarks.model import Model


@dataclass(frozen=True)
class Setting:
    """One run of the check, the same for all parts."""

    device: str
    #: For weights, logs and servers' files; it goes at the end.
    folder: str
    #: Divides the widths of Stable Diffusion 1.5.
    scale: int
    #: Edges of a picture in pixels: the usual, which is the model's own, and a large one.
    size_px: int
    large_px: int
    #: Steps of a picture where speed is measured, and where only its end matters.
    steps: int
    few_steps: int
    #: Waiting tasks at the usual size, and at the large one.
    counts: tuple[int, ...]
    large_count: int
    #: Pictures by which upstream's loop is timed, and how often each side is.
    loop_pictures: int
    turns: int
    #: Random requests that are compared with upstream or with the plain loop; large and small.
    requests: int
    brief: bool
    #: The precision beside float32.
    half: Literal["float16", "bfloat16"]
    #: Rows of a call; None measures them.
    max_batch_rows: int | None
    #: Tasks through the daemon, and their steps.
    daemon_tasks: int
    daemon_steps: int
    #: Rows of the UNet calls whose arithmetic is counted, and the matrices of the peak.
    flop_rows: tuple[int, ...]
    edges: tuple[int, ...]
    #: Rows of the one compiled number of rows, twice that of the degraded pass.
    compiled_rows: int

    #: Of Stable Diffusion XL: edge of a picture, rows of the calls whose memory is measured, and
    #: waiting tasks.
    xl_px: int
    xl_rows: tuple[int, ...]
    xl_counts: tuple[int, ...]

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is measured; else this is the rehearsal on a CPU."""
        return self.device != "cpu"

    @property
    def weights(self) -> Path:
        """Folder of the model of Stable Diffusion 1.5's size."""
        return Path(self.folder) / "sd15"

    def sd15(self, size_px: int | None = None) -> Model:
        """The model of Stable Diffusion 1.5's size, built by the part `weights`."""
        from benchmarks.model import Model  # noqa: PLC0415  # imports torch

        name = "Stable Diffusion 1.5's configuration, random weights"
        if self.scale > 1:
            name += f", widths / {self.scale}"
        return Model(name, self.weights, self.device, size_px or self.size_px)


def gpu(folder: Path) -> Setting:
    """For an H200, in eight minutes."""
    return Setting(
        device="cuda:0",
        folder=str(folder),
        scale=1,
        size_px=512,
        large_px=1024,
        steps=10,
        few_steps=4,
        counts=(1, 4, 16, 32),
        large_count=4,
        loop_pictures=4,
        turns=3,
        requests=30,
        brief=False,
        half="float16",
        max_batch_rows=None,
        daemon_tasks=32,
        daemon_steps=20,
        flop_rows=(1, 4, 16, 32, 64),
        edges=(4096, 8192, 16384),
        compiled_rows=16,
        xl_px=1024,
        xl_rows=(1, 2, 8, 16),
        xl_counts=(1, 4),
    )


def rehearsal(folder: Path) -> Setting:
    """For two cores of a CPU, in five minutes: its numbers mean nothing."""
    return Setting(
        device="cpu",
        folder=str(folder),
        scale=8,
        size_px=64,
        large_px=128,
        steps=2,
        few_steps=2,
        counts=(1, 4),
        large_count=1,
        loop_pictures=1,
        turns=1,
        requests=4,
        brief=True,
        half="bfloat16",
        max_batch_rows=8,
        daemon_tasks=4,
        daemon_steps=3,
        flop_rows=(1, 4),
        edges=(512,),
        compiled_rows=4,
        xl_px=64,
        xl_rows=(),
        xl_counts=(2,),
    )
