"""What a backend imports when it does as the examples do."""

from __future__ import annotations

import json

import pytest

from tests.contracts.test_imports import HEAVY
from tests.examples.conftest import EXAMPLES, run

LOADED = """
import json, os, sys
sys.path.insert(0, {folder!r})
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
import {modules}
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""


@pytest.mark.parametrize(
    ("example", "modules"),
    [("script", "pictures"), ("fastapi", "pictures"), ("django", "shop.urls, shop.refusals")],
)
def test_no_example_loads_the_worker(example: str, modules: str) -> None:
    """No example imports the worker, torch, or anything else that only the worker needs."""
    done = run("-c", LOADED.format(folder=str(EXAMPLES / example), modules=modules))
    assert done.returncode == 0, done.stderr
    names = set(json.loads(done.stdout))
    assert "api_contracts" in names
    assert not names & (HEAVY | {"worker"})
