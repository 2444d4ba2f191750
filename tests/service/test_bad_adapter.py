"""One worker, and an adapter whose file is at fault."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch

from api_contracts import GenerationFailed
from tests.engine import lora_files
from tests.engine.diffusers_alone import bare
from tests.engine.jobs import SPEC
from tests.service.conftest import END_S, PROMPT
from worker.execution.circuit_breaker import MAX_FAILURES

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Service


@pytest.mark.slow
def test_a_bad_adapter_fails_only_its_own_tasks(
    start_service: Callable[..., AbstractContextManager[Service]], redis_url: str, tmp_path: Path
) -> None:
    """Tasks that name it fail, however many; another task goes on, and the worker stays well."""
    path = tmp_path / "ink.safetensors"
    lora_files.save(path, lora_files.layers(bare(SPEC.path), 1), "peft")
    tensors = safetensors.torch.load_file(path)
    next(iter(tensors.values())).fill_(float("nan"))
    safetensors.torch.save_file(tensors, path)
    spec = lora_files.with_adapters(SPEC, {"ink": path})
    models = json.dumps({"default": spec.model_dump(mode="json", exclude_defaults=True)})
    wanted: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 150}
    with start_service(redis_url, models=models, slots="8") as service:
        long = service.client.submit(wanted)
        next(event for event in long.events(timeout=END_S) if event.type == "progress")
        for seed in range(MAX_FAILURES + 1):
            bad = wanted | {"loras": [{"name": "ink"}], "seed": seed}
            with pytest.raises(GenerationFailed, match="not finite") as failed:
                service.client.submit(bad).result(END_S)
            assert failed.value.error.code == "model_load_failed"
            assert not failed.value.error.retryable
        assert long.result(END_S).images
        told = [event.type for event in long.events(timeout=END_S)]
        assert "requeued" not in told
        assert "tasks in a row failed" not in service.log.read_text()
