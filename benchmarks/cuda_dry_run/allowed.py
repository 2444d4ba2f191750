"""The waits that the engine is known to have, each with its reason. Any other is a fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.cuda_dry_run.place import Place


@dataclass(frozen=True)
class Allowed:
    """A wait that is no fault."""

    reason: str
    #: Beginning of the call's kind, the engine's function, and a part of the operator's name.
    call: str
    function: str = ""
    op: str = ""
    #: What is read, where the engine's way depends on it.
    value: Any = None


_ADAPTER = "no job makes progress while an adapter is loaded"
ALLOWED = (
    Allowed(_ADAPTER, "load an adapter", "_check_finite", value=True),
    Allowed(_ADAPTER, "load an adapter"),
    Allowed("nothing else runs while a model is loaded", "load"),
    Allowed("no job makes progress while rows are measured", "measure rows"),
    Allowed("the map of previews, once for a model", "", "_fit"),
    Allowed("paces the host, at most one call ahead", "pace", op="cudaEventSynchronize"),
    Allowed("overflow check, once in a decode", "decode", "Decoder._decode_once", value=False),
    Allowed("on the side thread", "finish", "_check_finite", value=True),
    Allowed("on the side thread", "finish"),
    Allowed("on the side thread", "preview"),
    Allowed("on the side thread", "checkpoint, to bytes"),
)


def reason_and_value(call: str, op: str, where: Place, value: Any) -> tuple[str | None, Any]:  # noqa: ANN401  # what is read
    """Why a wait is allowed, and what it reads; None and `value` where no rule matches."""
    for rule in ALLOWED:
        if call.startswith(rule.call) and rule.function in ("", where.function) and rule.op in op:
            return rule.reason, value if rule.value is None else rule.value
    return None, value
