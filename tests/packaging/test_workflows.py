"""The workflows: pinned actions, few permissions, an end to every job."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.packaging.environments import ROOT

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
#: An action by its commit, its version in a comment that dependabot renews.
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def text(request: pytest.FixtureRequest) -> str:
    """The text of one workflow."""
    content: str = request.param.read_text()
    return content


def test_actions_are_pinned_by_commit(text: str) -> None:
    """Each action is named by the hash of a commit, with its version beside it."""
    actions = re.findall(r"uses: *(.+)", text)
    assert actions
    assert [action for action in actions if not PINNED.fullmatch(action)] == []


def test_a_workflow_may_only_read(text: str) -> None:
    """A workflow reads the repository; only `publish` may ask for an identity, and nothing more."""
    workflow: dict[str, Any] = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    asked = {
        name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job
    }
    assert asked in ({}, {"publish": {"id-token": "write"}})


def test_jobs_end(text: str) -> None:
    """Each job has a time limit, and runs of one workflow for one ref do not pile up."""
    workflow: dict[str, Any] = yaml.safe_load(text)
    assert "concurrency" in workflow
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
