"""What an import costs and loads."""

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
    """Seconds of a processor that the import took, afresh, and the packages then loaded."""
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
    """A backend pays under half a second of a processor, and loads nothing of the worker."""
    tries = []
    for _ in range(5):
        took_s, names = imported("api_contracts")
        assert not names & (HEAVY | {"worker", "celery"})
        tries.append(took_s)
        if took_s < 0.5:
            return
    pytest.fail(f"the quickest of {tries} s is too slow")


def test_the_worker_loads_no_torch_and_reads_nothing() -> None:
    """`import worker.app` neither loads torch nor looks at the environment, be it ever so wrong."""
    wrong = {"SAG_BROKER_URL": "nonsense", "SAG_SLOTS": "many", "SAG_MODELS": "{"}
    _, names = imported("worker.app", **wrong)
    assert not names & {"torch", "diffusers", "transformers"}


def test_settings_are_read_when_the_application_is_asked_for() -> None:
    """`worker.app.app` is what reads the environment: a wrong one fails there, by name."""
    done = subprocess.run(
        [sys.executable, "-c", "import worker.app; worker.app.app"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SAG_SLOTS": "many"},
    )
    assert done.returncode != 0
    assert "slots" in done.stderr
