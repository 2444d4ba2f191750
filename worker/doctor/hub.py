"""Whether the hub has what is not whole on this machine yet: a model, LoRA, configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.doctor.finding import Finding
from worker.logs import without_logins

if TYPE_CHECKING:
    from worker.config.models import ModelSpec

#: Longest wait for an answer of the hub, in seconds.
HUB_TIMEOUT_S = 5.0
_FIX = (
    "check HF_ENDPOINT, HTTPS_PROXY, SSL_CERT_FILE and HF_TOKEN; or set its path in SAG_MODELS,"
    " or its config, to a folder on this machine"
)


def check_hub(what: str, spec: ModelSpec, repository: str) -> Finding:
    """Look into the hub's cache, then ask the hub for `repository`, one of those of `spec`."""
    from huggingface_hub import HfApi, constants  # noqa: PLC0415  # the worker extra

    from worker.engine.loading import hub  # noqa: PLC0415  # as above

    if repository not in hub.missing(spec):
        return Finding(what, ok=True, found=f"{repository} is in the cache")
    if constants.HF_HUB_OFFLINE:
        found = f"{repository} is not whole in the cache, and HF_HUB_OFFLINE is set"
        return Finding(what, ok=False, found=found, fix=_FIX)
    endpoint = without_logins(constants.ENDPOINT)
    try:
        HfApi().model_info(repository, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001  # the hub's client raises anything
        found = f"{endpoint} does not give {repository}: {without_logins(repr(error))}"[:500]
        return Finding(what, ok=False, found=found, fix=_FIX)
    return Finding(what, ok=True, found=f"{endpoint} has {repository}")
