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
    """Importing `api_contracts` takes under 0.5 s of CPU and loads nothing of the worker."""
    tries = []
    for _ in range(5):
        took_s, names = imported("api_contracts")
        assert not names & (HEAVY | {"worker", "celery"})
        tries.append(took_s)
        if took_s < 0.5:
            return
    pytest.fail(f"the quickest of {tries} s is too slow")


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
