"""One thread of a process computes in parallel: the engine's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.engine.jobs import SPEC, job
from worker.engine import torch_threads
from worker.engine.engine import Engine, load_model
from worker.job_control import Control

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.engine.model_loader import LoadedModel

#: Fields of a job, each of which makes another thread compute.
KINDS: dict[str, dict[str, Any]] = {
    "previews": {"preview_every": 1},
    "checkpoints": {"checkpoint_every": 1},
    "arrays": {"output_type": "npy"},
    "latents": {"output_type": "latent"},
    "pictures": {"output_type": "png"},
}
#: A lone task may take so much longer after another; a second pool made it 2 times as long.
MOST = 1.4
#: Tries of the whole measurement: on a busy machine any of them may be disturbed.
TRIES = 3


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch as it is on two cores; the suite itself gives it one thread."""
    monkeypatch.setattr(torch_threads, "_usual_threads", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_other_threads_compute_alone() -> None:
    """The UNet runs with all threads, callbacks and previews with one; no pool is added.

    The UNet is a stand-in: barriers of two threads take long where tests share two cores.
    """
    inside: list[int] = []

    def loader(*given: Any, **options: Any) -> LoadedModel:
        model = load_model(*given, **options)

        def forward(noisy: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
            inside.append(torch.get_num_threads())
            return (noisy / 2,)

        model.pipeline.unet.forward = forward
        return model

    engine = Engine({"default": SPEC}, "cpu", "none", loader=loader, max_batch_rows=4)
    beside: list[int] = []
    control = Control(on_step=lambda _: beside.append(torch.get_num_threads()))
    plain: dict[str, Any] = {"output_type": "png", "sag_scale": 0.0}
    engine.submit(job(**plain), control).result(120)
    threads = _os_threads()
    for fields in KINDS.values():
        engine.submit(job(**(plain | fields)), control).result(120)
    assert _os_threads() == threads
    engine.close()
    assert set(inside) == {2}
    assert set(beside) == {1}


@pytest.mark.slow
def test_a_lone_task_stays_as_fast() -> None:
    """After each kind of work beside the engine a lone task takes as long as before.

    In a process of its own with two threads; the best of three tasks each time.
    """
    ratios: dict[str, float] = {}
    for _ in range(TRIES):
        found = _measure()
        ratios = {kind: min(each, ratios.get(kind, each)) for kind, each in found.items()}
        if max(ratios.values()) < MOST:
            break
    assert max(ratios.values()) < MOST, ratios


def _measure() -> dict[str, float]:
    """For each kind, the time of a lone task after it by the time before all of them."""
    run = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, float] = json.loads(run.stdout)
    return found


def _os_threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def _main() -> None:
    import time

    engine = Engine({"default": SPEC}, "cpu", "none", max_batch_rows=4)

    def lone_s() -> float:
        times = []
        for _ in range(3):
            began_s = time.perf_counter()
            engine.submit(job(num_inference_steps=8), Control()).result()
            times.append(time.perf_counter() - began_s)
        return min(times)

    lone_s()
    before_s = lone_s()
    ratios = {}
    for kind, fields in KINDS.items():
        engine.submit(job(**({"output_type": "png"} | fields)), Control()).result()
        ratios[kind] = lone_s() / before_s
    engine.close()
    print(json.dumps(ratios))


if __name__ == "__main__":
    _main()
