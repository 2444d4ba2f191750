"""What imports load and how long they take."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

LOADED = """
import json, sys, time
begun = time.process_time()
import {module}
took = time.process_time() - begun
print(json.dumps([took, sorted({{name.split(".")[0] for name in sys.modules}})]))
"""
HEAVY = {"torch", "diffusers", "transformers", "boto3", "botocore", "PIL", "numpy"}


def imported(module: str, **environment: str) -> tuple[float, set[str]]:
    """CPU seconds of an import in a new process, and the packages loaded after it."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(module=module)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    took_s, names = json.loads(done.stdout)
    return took_s, set(names)


def test_contracts_are_light() -> None:
    """Importing `api_contracts` takes little more than redis-py and pydantic, and no worker."""
    tries = []
    for _ in range(5):
        took_s, names = imported("api_contracts")
        assert not names & (HEAVY | {"worker", "celery"})
        tries.append(took_s / imported("pydantic, redis.asyncio")[0])
        if tries[-1] < 2:
            return
    pytest.fail(f"takes {tries} times as long as what it needs")


def test_the_worker_loads_no_torch_and_reads_nothing() -> None:
    """`import worker.app` loads no torch and reads no environment."""
    wrong = {"SAG_BROKER_URL": "nonsense", "SAG_SLOTS": "many", "SAG_MODELS": "{"}
    _, names = imported("worker.app", **wrong)
    assert not names & {"torch", "diffusers", "transformers"}


def test_settings_are_read_when_the_application_is_asked_for() -> None:
    """`worker.app.app` reads the environment; an invalid setting fails there, with its name."""
    done = subprocess.run(
        [sys.executable, "-c", "import worker.app; worker.app.app"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SAG_SLOTS": "many"},
    )
    assert done.returncode != 0
    assert "slots" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["health", "--help"]])
def test_help_loads_no_engine(arguments: list[str]) -> None:
    """`sag-worker --help` and that of `run`, which starts the rest, load nothing heavy."""
    program = (
        "import json, sys\n"
        f"sys.argv = {['sag-worker', *arguments]!r}\n"
        "from worker.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not set(json.loads(done.stdout.splitlines()[-1])) & (HEAVY | {"celery"})


@pytest.mark.slow  # it imports torch
def test_the_engine_imports_what_it_uses() -> None:
    """The engine imports no other framework, no training, no plots and no deprecated pipeline.

    Nor does an import make a pool of threads: the fork server imports all of this.
    """
    done = subprocess.run(
        [sys.executable, "-c", ENGINE], capture_output=True, text=True, check=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    threads, names = json.loads(done.stdout)
    unused = {
        "tensorflow", "jax", "flax", "matplotlib", "pandas", "datasets", "torchvision", "celery",
        "diffusers.pipelines.stable_diffusion_sag",
        "diffusers.pipelines.stable_diffusion_xl", "torch._inductor.compile_fx", "triton",
    }  # fmt: skip
    assert sorted(unused & set(names)) == []
    assert threads == 1


ENGINE = """
import importlib, json, os, sys
for name in ("loading.model_loader", "runner", "device.warmup"):
    importlib.import_module(f"worker.engine.{name}")
print(json.dumps([len(os.listdir("/proc/self/task")), sorted(sys.modules)]))
"""
