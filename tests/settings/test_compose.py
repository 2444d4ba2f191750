"""The Compose file: settings, times, and what SAG_COMPILE needs of the image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.health_time import LONGEST_HEALTH_S
from worker.config.settings import Settings
from worker.supervisor.supervisor import KILL_DELAY_S

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
#: Where an operator reads how long a worker may take to stop.
STOP_PAGES = ["operations.md", "compose.md", "kubernetes.md"]


@pytest.fixture
def services() -> dict[str, dict[str, Any]]:
    """The services by name."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def longest_stop_s() -> float:
    """Seconds from SIGTERM to the exit of the supervisor, with the default settings."""
    fields = Settings.model_fields
    return float(
        fields["drain_timeout_s"].default + fields["exit_timeout_s"].default + KILL_DELAY_S
    )


def test_compose_passes_every_setting_on() -> None:
    """Each setting is set or passed on; one that the stack dropped would have no effect."""
    named = set(re.findall(r"^ +(SAG_[A-Z0-9_]+):", COMPOSE.read_text(), re.MULTILINE))
    assert named == {f"SAG_{name.upper()}" for name in Settings.model_fields}


def test_the_health_check_has_time_to_say_that_redis_is_away(
    services: dict[str, dict[str, Any]],
) -> None:
    """The health check has more time than `health` takes to say that Redis is away."""
    assert float(services["worker"]["healthcheck"]["timeout"].rstrip("s")) > LONGEST_HEALTH_S


def test_a_stop_has_time_for_the_drain_and_the_exit(services: dict[str, dict[str, Any]]) -> None:
    """A stop by Compose and by the documented systemd unit waits for the drain and the exit."""
    (grace_s,) = re.findall(r":-(\d+)s}", services["worker"]["stop_grace_period"])
    unit = (ROOT / "docs" / "operations.md").read_text()
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert min(float(grace_s), float(stop_s)) > longest_stop_s()


@pytest.mark.parametrize("page", STOP_PAGES)
def test_the_pages_have_one_formula_for_a_stop(page: str) -> None:
    """The pages have one formula for a stop: the drain, the exit and the supervisor's delay."""
    fields = Settings.model_fields
    formula = (
        f"`SAG_DRAIN_TIMEOUT_S` ({fields['drain_timeout_s'].default} s) +"
        f" `SAG_EXIT_TIMEOUT_S` ({fields['exit_timeout_s'].default} s) + {KILL_DELAY_S:g} s"
    )
    assert formula in (ROOT / "docs" / page).read_text()


def test_a_compiler_can_be_built_in_and_its_code_loaded(
    services: dict[str, dict[str, Any]],
) -> None:
    """A compiler can be built into the image, and /tmp may execute what `SAG_COMPILE` makes.

    All services of the image are built alike, or the last one built would be used for all.
    """
    image = (ROOT / "Dockerfile").read_text()
    assert "\nARG COMPILER=\n" in image
    assert "--no-install-recommends tini ${COMPILER:+gcc g++} " in image
    assert services["worker"]["build"]["args"]["COMPILER"] == "${STACK_COMPILER:-}"
    assert services["exporter"]["build"] == services["worker"]["build"]
    (temporary,) = services["worker"]["tmpfs"]
    assert temporary == "/tmp:exec"
