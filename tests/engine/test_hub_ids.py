"""Which paths are hub ids: those that the hub's client takes as such."""

from __future__ import annotations

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, but in no __all__

from tests.engine.jobs import SPEC
from worker.config.models import is_hub_id
from worker.engine.loading import hub, model_loader
from worker.errors import ModelLoadError


@pytest.mark.parametrize(
    "path",
    [
        "hub/models--owner--name", "owner/a..b", f"owner/{'x' * 97}", f"{'x' * 97}/name",
        "owner/name.git", "owner/name-", "owner/name.", "owner./name", "owner/n\u00e4me",
        "owner/name\n",
    ],
)  # fmt: skip
def test_what_the_hubs_client_refuses_is_a_path(path: str) -> None:
    """A path that looks like a hub id, and is none, is a path that leads nowhere."""
    with pytest.raises(HFValidationError):
        validate_repo_id(path)
    assert not is_hub_id(path)
    assert hub.local(path) is None
    with pytest.raises(ModelLoadError, match="is no hub id"):
        model_loader.load(SPEC.model_copy(update={"path": path}), "cpu", "none")


@pytest.mark.parametrize("path", ["a/b", "owner/name", f"owner/{'x' * 96}", "o-w.n_er/n.a-m_e"])
def test_what_the_hubs_client_takes_is_a_hub_id(path: str) -> None:
    """Owner and name of up to 96 characters each."""
    validate_repo_id(path)
    assert is_hub_id(path)
