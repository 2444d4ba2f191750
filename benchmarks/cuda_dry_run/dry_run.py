"""The whole dry run of one model: every sampler in mixed rounds, checkpoints, and full rounds."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks.cuda_dry_run import calls, models, row_adapters, scenes, stand_ins, variants
from benchmarks.cuda_dry_run.device import FakeCuda, fake_cuda
from worker.engine import guidance
from worker.engine.device import warmup
from worker.engine.pipeline import native_size
from worker.engine.sampling.samplers import SAMPLERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.cuda_dry_run.tally import Fault, Tally, Wait
    from worker.engine.loaded_model import LoadedModel

#: Memory of the simulated device.
TOTAL_BYTES = 80 * 2**30
#: Samplers of the full rounds.
MIXES: dict[str, tuple[str, ...]] = {
    "ddim": ("ddim",),
    "euler": ("euler",),
    "unipc": ("unipc",),
    "mixed": ("ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "heun", "lms"),
}
#: A full round with a mix's samplers, and with SAG's parameters or a picture and a mask beside.
SAG_PARAMETERS, MASKED = "sag_parameters", "masked"
#: Its tasks, and their steps where all begin within two rounds.
TASKS, STEPS = 16, 5


@dataclass
class Found:
    """What a dry run found."""

    model: str
    weights_bytes: int = 0
    tallies: list[Tally] = field(default_factory=list)
    #: A round of `TASKS` tasks by the name of the mix: one half in the main, one in the other pass.
    full_rounds: dict[str, Tally] = field(default_factory=dict)
    #: None for a model whose tasks have no adapters here.
    adapters: row_adapters.Found | None = None
    waits: list[Wait] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    #: What jobs failed with.
    errors: list[str] = field(default_factory=list)


@contextmanager
def engine_on_fake_cuda() -> Iterator[FakeCuda]:
    """The device, with the engine's calls counted. Leaves no fake tensor behind."""
    guidance._kernel.cache_clear()  # noqa: SLF001  # it keeps a tensor for each device
    try:
        with ExitStack() as stack:
            device = stack.enter_context(fake_cuda(TOTAL_BYTES))
            stack.enter_context(stand_ins.installed(device))
            stack.enter_context(calls.counted(device))
            stack.enter_context(mock.patch.object(warmup, "_call_s", _pretended_s))
            yield device
    finally:
        guidance._kernel.cache_clear()  # noqa: SLF001  # as above


def _pretended_s(call: Callable[[int], None], rows: int) -> float:
    """Make a call, in a time by which warming up measures all numbers of rows."""
    call(rows)
    return 0.02 + 0.005 * rows


def run(model: str) -> Found:
    """Run the engine on a model of that name."""
    found = Found(model)
    with engine_on_fake_cuda() as device:
        found.tallies, found.waits, found.faults = device.tallies, device.waits, device.faults

        def load() -> LoadedModel:
            loaded = models.load(model)
            found.weights_bytes = device.memory.alive_bytes
            return loaded

        rounds = scenes.Rounds(load, warmup.TRIED_ROWS[-1], models.MODELS[model].subject)
        every_sampler(rounds, models.MODELS[model], steps=6)
        for name, arrivals in _full_rounds(rounds, models.MODELS[model]).items():
            before = len(device.tallies)
            rounds.run(arrivals)
            found.full_rounds[name] = _full(device.tallies[before:], models.MODELS[model])
        found.errors = rounds.errors()
        rounds.close()
        measured = scenes.Rounds(lambda: models.load(model), None)
        measured.runner.unet.measure()
        measured.close()
        if models.MODELS[model].takes_adapters:
            full = partial(_full, model=models.MODELS[model])
            found.adapters = row_adapters.run(device, models.load(model), full, TASKS)
            found.errors += found.adapters.errors
    return found


def every_sampler(rounds: scenes.Rounds, model: models.Model, steps: int) -> None:
    """Rounds with a model's samplers, from noise and from pictures, then all from checkpoints.

    A model for inpainting makes nothing from noise alone, one of pixels nothing from pictures.
    """
    names = model.samplers
    arrivals = [] if model.inpainting else scenes.mixed(names, steps, model.other_px)
    sizes_px = (_own_px(rounds), model.other_px)
    pictured = []
    if model.subject is None:
        pictured = variants.varied(names, steps, sizes_px, inpainting=model.inpainting)
    runner = rounds.runner
    mapped = runner.preview_map
    assert mapped is not None
    # Both ways of drawing a preview: numbers read from the device are random, so no map fits.
    runner.preview_map = replace(mapped, unexplained=0.0)
    rounds.run(arrivals)
    rounds.run(pictured)
    runner.preview_map = None
    rounds.run(scenes.resumed([*arrivals, *pictured], rounds.checkpoints))


def _full_rounds(rounds: scenes.Rounds, model: models.Model) -> dict[str, list[scenes.Arrival]]:
    """The tasks of each full round by its name."""

    def masked(number: int) -> dict[str, Any]:
        # Strength 1 makes all steps; one picture is encoded in a round, so the last task starts
        # when the first has made half as many steps as there are tasks.
        given = variants.picture(number, _own_px(rounds), mask=True) | {"strength": 1.0}
        return given | {"num_inference_steps": STEPS + TASKS // 2}

    steady = partial(scenes.steady, tasks=TASKS, steps=STEPS)
    found = {MASKED: steady(MIXES["ddim"], changes=masked)} if model.subject is None else {}
    if model.inpainting:
        return found
    mixes = MIXES.items() if len(model.samplers) == len(SAMPLERS) else [("ddim", ("ddim",))]
    plain = {name: steady(samplers) for name, samplers in mixes}
    return plain | {SAG_PARAMETERS: steady(MIXES["ddim"], changes=variants.sag_parameters)} | found


def _own_px(rounds: scenes.Rounds) -> tuple[int, int]:
    """Height and width of a model's own pictures, in pixels."""
    pipe = rounds.runner.pipe
    height, width = native_size(pipe)
    return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor


def _full(tallies: list[Tally], model: models.Model) -> Tally:
    """The middle one of the rounds in which every task takes part: samplers have their order."""
    kind = f"round, {TASKS // 2 * (model.main_rows + 1)} rows"
    full = [tally for tally in tallies if tally.kind == kind]
    return full[len(full) // 2]
