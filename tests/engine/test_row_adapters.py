"""LoRA by request: in company as diffusers alone with `set_adapters`, and in no other row."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.engine import lora_files
from tests.engine.diffusers_alone import OTHER, bare
from tests.engine.jobs import SPEC, Rounds, apart, assert_close, job, latents_of
from tests.engine.served_adapters import FILES, Served, by_oracle
from tests.engine.small_models import save_xl, spec
from worker.config.models import Lora
from worker.errors import ModelLoadError, NotFiniteError
from worker.job_control import Control

if TYPE_CHECKING:
    from pathlib import Path

    from worker.engine.job import Job


@pytest.fixture(scope="module", params=["sd", "xl"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A model of each family of latents."""
    folder = tmp_path_factory.mktemp(request.param)
    own = SPEC if request.param == "sd" else spec(save_xl(folder / "xl"))
    return Served(own, folder)


def jobs() -> list[Job]:
    """Jobs with 0, 1 and 2 adapters at several scales, with and without SAG and guidance."""
    return [
        job(seeds=(1,)),
        job(seeds=(2,), loras=(("ink", 1.0),)),
        job(seeds=(3,), loras=(("ink", 0.3),), sag_scale=0.0),
        job(seeds=(4,), loras=(("oil", 0.7),), guidance_scale=1.0),
        job(seeds=(5,), loras=(("wax", -0.8), ("oil", 0.5)), negative_prompts=("a ring",)),
        job(seeds=(6,), loras=(("wax", 0.9), ("ink", 1.2)), sag_scale=0.0, guidance_scale=1.0),
        job(seeds=(7,), loras=(("tar", 1.1),), num_inference_steps=4),
        job(seeds=(8,), sag_scale=0.0),
    ]  # fmt: skip


def test_each_is_diffusers_whatever_its_company(served: Served) -> None:
    """Jobs of 0, 1 and 2 adapters that share calls each equal diffusers with `set_adapters`."""
    wanted = jobs()
    futures = [served.rounds.submit(each) for each in wanted]
    served.rounds.run()
    for each, future in zip(wanted, futures, strict=True):
        result = future.result(timeout=0)
        assert result.batch > 4
        assert_close(latents_of(result), served.merged(each))
        if each.loras:
            plain = latents_of(served.rounds.result(replace(each, loras=())))
            assert apart(latents_of(result), plain) > OTHER


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The bundled model, with room for two adapters."""
    folder = tmp_path_factory.mktemp("small")
    made = Served(SPEC, folder)
    made.rounds = Rounds(lora_files.with_adapters(SPEC, made.files), max_adapters=2)
    return made


@pytest.mark.filterwarnings("ignore:Already found a .peft_config:UserWarning")
def test_it_is_set_adapters(small: Served) -> None:
    """A job with two adapters equals diffusers' own `load_lora_weights` and `set_adapters`."""
    wanted = job(loras=(("ink", 0.7), ("tar", -0.4)))
    assert_close(latents_of(small.rounds.result(wanted)), small.by_set_adapters(wanted))


def test_no_other_job_has_them(small: Served) -> None:
    """A job without adapters has the same bits before, while and after some are loaded."""
    alone = Rounds()
    before = latents_of(alone.result(job()))
    for name in FILES:
        assert latents_of(small.rounds.result(job(loras=((name, 1.0),)))).isfinite().all()
        assert torch.equal(latents_of(small.rounds.result(job())), before)
    assert not {
        name
        for part in (small.rounds.pipe.unet, small.rounds.pipe.text_encoder)
        for layer in lora_layers(part)
        for name in layer.active_adapters
    }


def lora_layers(module: Any) -> list[Any]:
    return [each for each in module.modules() if hasattr(each, "lora_A")]


def weights_bytes(rounds: Rounds) -> int:
    parts = (rounds.pipe.unet, rounds.pipe.text_encoder)
    return sum(each.nbytes for part in parts for each in part.parameters())


def test_the_least_recently_used_is_unloaded(small: Served) -> None:
    """Under a budget of two, adapters come and go; memory is flat, and the bits are the same."""
    made: dict[tuple[str, ...], torch.Tensor] = {}
    sets = [("ink",), ("oil",), ("wax", "ink"), ("tar",), ("oil", "tar"), ("ink",)]
    passes: list[list[int]] = []
    for _ in range(3):
        passes.append([])
        for names in sets:
            wanted = job(loras=tuple((name, 0.8) for name in names), num_inference_steps=1)
            ours = latents_of(small.rounds.result(wanted))
            assert torch.equal(ours, made.setdefault(names, ours))
            passes[-1].append(weights_bytes(small.rounds))
            kept = {*small.rounds.runner.model.adapters.loaded}
            assert {*names} <= kept
            assert len(kept) <= 2
    assert passes[1] == passes[2]
    everything = sum(
        layer.down.nbytes + layer.up.nbytes for each in small.weights.values() for layer in each
    )
    assert weights_bytes(small.rounds) < weights_bytes(Rounds()) + everything


def test_jobs_of_more_adapters_than_the_budget_take_turns(small: Served) -> None:
    """Tasks of four adapters under a budget of two all succeed, each as alone, two at a time."""
    wanted = [job(seeds=(n,), loras=((name, 1.0),)) for n, name in enumerate([*FILES] * 2)]
    futures = [small.rounds.submit(each) for each in wanted]
    while small.rounds.batch.step():
        assert len(small.rounds.runner.model.adapters.loaded) <= 2
    for each, future in zip(wanted, futures, strict=True):
        assert future.result(timeout=0).batch > 1
        assert_close(latents_of(future.result(timeout=0)), small.merged(each))


def test_an_adapter_in_use_stays(small: Served) -> None:
    """Others come and go beside a job that runs, and its adapter is that of all of its steps."""
    wanted = [
        job(loras=(("ink", 1.0),), num_inference_steps=12),
        job(seeds=(2,), loras=(("oil", 1.0),), num_inference_steps=1),
        job(seeds=(3,), loras=(("wax", 1.0),), num_inference_steps=1),
    ]
    futures = []
    for each in wanted:
        futures.append(small.rounds.submit(each))
        for _ in range(4):
            small.rounds.batch.step()
    small.rounds.run()
    for each, future in zip(wanted, futures, strict=True):
        assert future.result(timeout=0).batch > 1
        assert_close(latents_of(future.result(timeout=0)), small.merged(each))


def test_an_adapter_that_is_not_loaded_is_not_left_out(small: Served) -> None:
    """A call with one fails."""
    with (
        pytest.raises(KeyError, match="mud"),
        small.rounds.runner.model.adapters.added(small.rounds.pipe.unet, [(("mud", 1.0),)]),
    ):
        pass


def test_a_scale_for_all_multiplies_the_own_lora_and_the_adapters(small: Served) -> None:
    """`lora_scale` multiplies the model's own LoRA and the job's adapters, as diffusers' does."""
    own = SPEC.model_copy(update={"lora": (Lora(path=str(small.files["ink"]), scale=0.5),)})
    rounds = Rounds(lora_files.with_adapters(own, small.files))
    wanted = [job(loras=(("wax", 0.8), ("ink", 0.3)), lora_scale=scale) for scale in (None, 0.5)]
    wanted += [job(lora_scale=0.5)]
    futures = [rounds.submit(each) for each in wanted]
    rounds.run()
    for each, future in zip(wanted, futures, strict=True):
        pipe = bare(SPEC.path)
        factor = each.lora_scale or 1.0
        lora_files.merge(pipe, small.weights["ink"], 0.5 * factor)
        for name, scale in each.loras:
            lora_files.merge(pipe, small.weights[name], scale * factor)
        assert_close(latents_of(future.result(timeout=0)), by_oracle(pipe, each))


def test_scales_for_all_share_calls_where_the_model_has_no_lora(small: Served) -> None:
    """Without a LoRA of the model's own the factor is one of each row."""
    wanted = [job(loras=(("ink", 1.0),), lora_scale=scale) for scale in (0.25, 0.5, None)]
    futures = [small.rounds.submit(each) for each in wanted]
    small.rounds.run()
    for each, future in zip(wanted, futures, strict=True):
        assert future.result(timeout=0).batch == 3
        assert_close(latents_of(future.result(timeout=0)), small.merged(each))


def test_an_adapter_that_overflows_spoils_no_other_row(small: Served, tmp_path: Path) -> None:
    """Its own task fails as not finite; tasks of other adapters and of none are as alone."""
    made = [replace(each, down=each.down * 1e38) for each in small.weights["ink"]]
    lora_files.save(tmp_path / "hot.safetensors", made)
    files = small.files | {"hot": tmp_path / "hot.safetensors"}
    rounds = Rounds(lora_files.with_adapters(SPEC, files))
    wanted = [job(loras=(("oil", 1.0),)), job(seeds=(2,))]
    futures = [rounds.submit(each) for each in [job(loras=(("hot", 1.0),)), *wanted]]
    rounds.run()
    assert isinstance(futures[0].exception(timeout=0), NotFiniteError)
    for each, future in zip(wanted, futures[1:], strict=True):
        assert_close(latents_of(future.result(timeout=0)), small.merged(each))


def test_an_adapter_that_does_not_load_fails_its_tasks_alone(small: Served, tmp_path: Path) -> None:
    """Weights that are not finite are refused by name; nothing of them is left, others go on."""
    made = [replace(each, up=each.up / 0) for each in small.weights["wax"]]
    lora_files.save(tmp_path / "bad.safetensors", made, "kohya")
    rounds = Rounds(
        lora_files.with_adapters(SPEC, small.files | {"bad": tmp_path / "bad.safetensors"})
    )
    futures = [rounds.submit(job(loras=((name, 1.0),))) for name in ("bad", "ink", "bad")]
    rounds.run()
    for future in (futures[0], futures[2]):
        error = future.exception(timeout=0)
        assert isinstance(error, ModelLoadError)
        assert "'bad'" in error.message
        assert "not finite" in error.message
    assert futures[1].result(timeout=0).images
    assert [*rounds.runner.model.adapters.loaded] == ["ink"]
    keys = {key for layer in lora_layers(rounds.pipe.unet) for key in layer.lora_A}
    assert keys == {"request-ink"}


def test_a_checkpoint_is_of_the_same_adapters(small: Served) -> None:
    """A job resumes with its adapters to the same bits; with other scales it starts anew."""
    saved: list[tuple[int, bytes]] = []
    control = Control(on_checkpoint=lambda step, data: saved.append((step, data)))
    wanted = job(loras=(("ink", 0.5),), num_inference_steps=4, checkpoint_every=2)
    made = latents_of(small.rounds.result(wanted, control))
    step, data = saved[0]
    again = small.rounds.result(replace(wanted, checkpoint=data))
    assert again.resumed_from_step == step
    assert torch.equal(latents_of(again), made)
    for loras in ((), (("ink", 0.6),), (("oil", 0.5),)):
        assert (
            small.rounds.result(replace(wanted, checkpoint=data, loras=loras)).resumed_from_step
            is None
        )
