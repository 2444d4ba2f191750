"""Which of OpenTelemetry's variables turn traces on, and what is said where they can't be."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from worker.tracing import switch
from worker.tracing.traces import Traces

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
OTLP = {"OTEL_TRACES_EXPORTER": "otlp"}
#: As where OpenTelemetry is not installed.
BLOCKED = "sys.modules['opentelemetry'] = None"


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        (OTLP, True),
        (ENDPOINT | OTLP | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, False),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "false"}, True),
    ],
)
def test_the_variables_that_turn_traces_on(environment: dict[str, str], on: bool) -> None:
    """An exporter or an endpoint turns traces on; `none` and OTEL_SDK_DISABLED turn them off."""
    assert switch.is_on(environment) is on


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER=zipkin .* otlp or none"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "PROTOCOL=grpc .* http/protobuf"),
        (
            ENDPOINT
            | {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            },
            "OTLP_TRACES_PROTOCOL=grpc",
        ),
    ],
)
def test_what_is_not_served_is_named(environment: dict[str, str], named: str) -> None:
    """An error for what is not served names the variable, its value and what is served."""
    with pytest.raises(ValueError, match=named):
        switch.is_on(environment)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "no traces: OTEL_TRACES_EXPORTER=zipkin"),
        (
            ENDPOINT | {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "0"},
            "batch_size must be a positive integer. (of OTEL_BSP_MAX_EXPORT_BATCH_SIZE)",
        ),
        (ENDPOINT | {"OTEL_BSP_MAX_QUEUE_SIZE": "9"}, " (of OTEL_BSP_MAX_QUEUE_SIZE)"),
        (ENDPOINT | {"OTEL_BSP_SCHEDULE_DELAY": "0"}, " (of OTEL_BSP_SCHEDULE_DELAY)"),
        (ENDPOINT | {"OTEL_SPAN_LINK_COUNT_LIMIT": "-1"}, "OTEL_SPAN_LINK_COUNT_LIMIT must be"),
    ],
)
def test_wrong_variables_stop_no_worker(
    environment: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the variables ask for and can't have is logged, and the worker goes on without."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    traces = Traces("host:name:1")
    traces.start()
    traces.close()
    assert [each.levelno for each in caplog.records] == [logging.WARNING]
    assert said in caplog.text


def test_an_error_that_names_nothing_is_given_all_variables_that_are_set() -> None:
    """An error that names nothing is given the variables that are set, without what they hold."""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://u:geheim@x", "OTEL_B": "1", "PATH": "/"}
    said = switch.named(ValueError("no port in http://u:geheim@x:y"), environment)
    assert said == "no port in http://x:y (of OTEL_B, OTEL_EXPORTER_OTLP_ENDPOINT)"


def test_a_worker_without_the_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the variables ask for traces and the extra is missing, the log says so."""
    monkeypatch.setenv(*next(iter(ENDPOINT.items())))
    monkeypatch.delitem(sys.modules, "worker.tracing.spans", raising=False)
    monkeypatch.delitem(sys.modules, "worker.tracing.provider", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    traces = Traces("host:name:1")
    traces.start()
    assert "install sag-worker[otel]" in caplog.text


@pytest.mark.parametrize("installed", [True, False])
def test_off_nothing_of_the_extra_is_needed_or_loaded(installed: bool) -> None:
    """Off, worker and client need no OpenTelemetry, and load no exporter where it is installed."""
    program = (
        "import sys\n"
        f"{'' if installed else BLOCKED}\n"
        "import worker.app\n"
        "from api_contracts import GenerationRequest\n"
        "from api_contracts.client.tracing import submit_span\n"
        "from worker.tracing.traces import Traces\n"
        "Traces('x').start()\n"
        "with submit_span([GenerationRequest(prompt='x')], ['id']) as traced:\n"
        "    assert traced == [GenerationRequest(prompt='x')]\n"
        "assert 'worker.tracing.spans' not in sys.modules\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.exporter')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
