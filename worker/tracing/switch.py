"""Whether OpenTelemetry's environment variables ask for traces. Imports nothing of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.logs import without_logins

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Each turns traces on, unless another variable turns them off.
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
#: The first that is set counts.
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
#: The only protocol that is served.
PROTOCOL = "http/protobuf"


def is_on(environment: Mapping[str, str]) -> bool:
    """Whether spans are to be exported; raises ValueError where they can't be as they should."""

    def read(name: str) -> str:
        return environment.get(name, "").strip().lower()

    if read("OTEL_SDK_DISABLED") == "true":
        return False
    match read("OTEL_TRACES_EXPORTER"):
        case "none":
            return False
        case "" if not any(map(read, ENDPOINTS)):
            return False
        case "" | "otlp":
            pass
        case other:
            message = f"OTEL_TRACES_EXPORTER={other} is not served; otlp or none"
            raise ValueError(message)
    for name in PROTOCOLS:
        if protocol := read(name):
            if protocol == PROTOCOL:
                break
            message = f"{name}={protocol} is not served; {PROTOCOL}, which has a port of its own"
            raise ValueError(message)
    return True


def named(error: Exception, environment: Mapping[str, str]) -> str:
    """What the SDK raises for a variable, with the variable's name.

    It names its own argument (`max_queue_size`), or nothing: then all that are set are named.
    """
    text = without_logins(str(error))
    if "OTEL_" in text:
        return text
    given = sorted(name for name in environment if name.startswith("OTEL_"))
    meant = [name for name in given if name.removeprefix("OTEL_BSP_").lower() in text]
    return f"{text} (of {', '.join(meant or given)})"
