"""Part: rows of different LoRA adapters in one call: their latents, its time, their memory."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import adapter_side, lora, sides
from benchmarks.gpu_check.rounds import Rounds
from tests.engine.jobs import job, latents_of
from worker.config.models import Adapter
from worker.engine.loading import adapters, model_loader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.gpu_check.outcome import Finding
    from benchmarks.gpu_check.setting import Setting
    from worker.config.models import ModelSpec
    from worker.engine.job import Adapters, Job, JobResult
    from worker.engine.loaded_model import LoadedModel

#: Files, and how many of them the rows of the calls that are timed have in turn.
FILES, COUNTS = 8, (1, 4, 8)
#: Adapters of the jobs that share calls.
MIXED: tuple[Adapters, ...] = (
    (), (("a0", 1.0),), (("a1", 0.5),), (("a2", 0.7), ("a0", -0.4)),
    (("a3", 1.0), ("a4", 0.6), ("a5", 0.3)),
)  # fmt: skip
#: Largest difference in float32, in parts of the largest latent, as in the part `parity`; and the
#: least that adapters change.
CLOSE, OTHER = 1e-4, 1e-3
#: Rows of a call: those of all jobs in their main pass, and some.
ROWS = 16


def run(setting: Setting, found: Finding) -> None:
    """Latents in both precisions and with offload, then memory, then times."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    model, folder = setting.sd15(), Path(setting.folder) / "adapters"
    folder.mkdir()
    adapter_side.save(model, folder, FILES)
    files = {each.stem: Adapter(path=str(each)) for each in sorted(folder.iterdir())}
    for dtype, mode in (("float32", "none"), ("float32", "swap"), (setting.half, "none")):
        if mode != "none" and not setting.on_gpu:
            found.note("Offload: only on a GPU.")
            continue
        spec = model.spec.model_copy(update={"dtype": dtype, "adapters": files})
        rounds = Rounds(spec, setting.device, ROWS, load=partial(_load, mode))
        _latents(setting, found, rounds, f"{dtype}, offload {mode}")
        if mode == "none" and dtype == setting.half:
            _memory(setting, found, rounds, spec)
        rounds.runner.close()
    _times(setting, found, adapter_side.AdapterSide(model, folder))


def _load(mode: str, spec: ModelSpec, device: str, _none: str) -> LoadedModel:
    return model_loader.load(spec, device, mode)


def _latents(setting: Setting, found: Finding, rounds: Rounds, how: str) -> None:
    """Jobs together beside each alone with its adapters active in peft, for all rows."""
    # All cells are salient: none is near a threshold, where rounding decides.
    given: dict[str, Any] = {"num_inference_steps": setting.few_steps, "sag_mask_threshold": 0.0}
    jobs = [job(seeds=(n,), loras=loras, **given) for n, loras in enumerate(MIXED)]
    far, changed = [], []
    for each, result in zip(jobs, rounds.results(jobs), strict=True):
        bare = replace(each, loras=())
        with _active(rounds, each):
            (alone,) = rounds.results([bare])
        far.append(_apart(result, alone))
        if each.loras:
            (plain,) = rounds.results([bare])
            changed.append(_apart(plain, alone))
    found.row(
        latents=how,
        jobs=len(jobs),
        most_of_largest_latent=f"{max(far):.1e}",
        least_change_by_adapters=f"{min(changed):.1e}",
    )
    if how.startswith("float32"):
        found.check(f"{how}: every job in company is within 1e-4 of peft's own, alone",
                    holds=max(far) <= CLOSE)  # fmt: skip
        found.check(f"{how}: adapters change the latents", holds=min(changed) > OTHER)


def _apart(ours: JobResult, theirs: JobResult) -> float:
    """The largest difference, in parts of the largest latent; infinite where one is NaN."""
    latents, expected = latents_of(ours), latents_of(theirs)
    difference = (latents - expected).abs().max() / expected.abs().max()
    return float(difference.nan_to_num(float("inf")))


@contextmanager
def _active(rounds: Rounds, wanted: Job) -> Iterator[None]:
    """The adapters of a job active in peft, in all rows of a call."""
    pipe = rounds.runner.pipe
    layers = {each for name, _ in wanted.loras for each in adapters.layers(pipe, name)[pipe.unet]}
    scales = {adapters.in_peft(name): scale for name, scale in wanted.loras}
    for layer in layers:
        layer.set_adapter([*scales])
        for name, scale in scales.items():
            layer.set_scale(name, scale)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_adapter([])
            for name in scales:
                layer.set_scale(name, 1.0)


def _memory(setting: Setting, found: Finding, rounds: Rounds, spec: ModelSpec) -> None:
    """What one adapter takes, and whether it is free again when it is unloaded."""
    names, pipe = [*spec.adapters], rounds.runner.pipe

    def with_some(wanted: Sequence[str]) -> int:
        """Bytes with no other adapters than these loaded."""
        rounds.runner.model.adapters.load(pipe, spec, wanted, (), len(wanted))
        if setting.on_gpu:
            return torch.cuda.memory_allocated(setting.device)
        return sum(each.nbytes for each in pipe.unet.parameters())

    none_bytes = with_some(())
    began_s = time.perf_counter()
    all_bytes = with_some(names)
    took_s = (time.perf_counter() - began_s) / len(names)
    found.note(
        f"An adapter of rank {lora.RANK} takes {(all_bytes - none_bytes) / len(names) / 2**20:.1f} "
        f"MiB in {spec.dtype}, and {took_s:.2f} s to load, when no job makes progress."
    )
    found.check("nothing is left of adapters that were unloaded",
                holds=with_some(()) == none_bytes)  # fmt: skip


def _times(setting: Setting, found: Finding, side: adapter_side.AdapterSide) -> None:
    """A call whose rows have adapters in turn, over one without, in turns."""
    for rows in setting.flop_rows:
        told = []
        for count in (each for each in COUNTS if each <= rows):
            calls = [partial(side.by_row, rows, count), partial(side.plain, rows, count)]
            by_row, plain = sides.alternate(calls, setting.turns)
            over = sides.ratio(by_row, plain)
            found.row(
                rows=rows,
                adapters=count,
                plain_ms=1000 * sides.Spread.of(plain).median,
                **over.cells("times_plain"),
            )
            told.append(f"{over.median:.2f} with {count}")
        found.headline(f"A call of {rows} rows takes {', '.join(told)} adapters, of one without.")
