"""Whether the hub has a model that is not on this machine yet."""

from __future__ import annotations

from worker.doctor.finding import Finding

#: Longest wait for an answer of the hub, in seconds.
HUB_TIMEOUT_S = 5.0
_FIX = (
    "check HF_ENDPOINT, HTTPS_PROXY, SSL_CERT_FILE and HF_TOKEN; or set the model's path in"
    " SAG_MODELS to a folder on this machine"
)


def check_hub(what: str, repository: str) -> Finding:
    """Look into the hub's cache, then ask the hub; `repository` is `owner/name`."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache  # noqa: PLC0415  # the worker extra

    if isinstance(try_to_load_from_cache(repository, "model_index.json"), str):
        return Finding(what, ok=True, found=f"{repository} is in the cache")
    if constants.HF_HUB_OFFLINE:
        found = f"{repository} is not in the cache, and HF_HUB_OFFLINE is set"
        return Finding(what, ok=False, found=found, fix=_FIX)
    try:
        HfApi().model_info(repository, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001  # the hub's client raises anything
        found = f"{constants.ENDPOINT} does not give {repository}: {error!r}"[:500]
        return Finding(what, ok=False, found=found, fix=_FIX)
    return Finding(what, ok=True, found=f"{constants.ENDPOINT} has {repository}")
