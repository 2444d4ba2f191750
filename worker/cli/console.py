"""Shared by the commands: the console, error exits, settings and client."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn, TypeVar

from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from rich.markup import escape

from api_contracts import GenerationClient, GenerationError, InvalidRequest
from worker.config.environment import read
from worker.exit_codes import FAILED, INVALID, UNAVAILABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.config.settings import Settings

T = TypeVar("T")

#: Messages for people; results and identifiers go to standard output.
console = Console(stderr=True)
#: C0, DEL and C1, which a terminal may take for a command, to their JSON escapes.
_CONTROLS = {code: f"\\u{code:04x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_CONTROLS |= dict.fromkeys(map(ord, "\t\n\r"), " ")


def printable(text: str) -> str:
    """Return untrusted text on one line and without control characters.

    Control characters become their JSON escapes, so that JSON keeps its meaning.
    """
    return text.translate(_CONTROLS)


def or_exit(call: Callable[[], T], unavailable: int = UNAVAILABLE) -> T:
    """Return the result of `call`; a client error becomes a message and an exit status.

    `unavailable` is that of an error of the service, such as a Redis that does not answer.
    """
    try:
        return call()
    except InvalidRequest as error:
        for fault in error.faults:
            where, what, limit = (
                escape(printable(str(each))) for each in (fault.where, fault.what, fault.limit)
            )
            console.print(f"[red]{where}[/]: {what} [dim](limit: {limit})[/]", soft_wrap=True)
        sys.exit(INVALID)
    except GenerationError as error:
        fail(f"{type(error).__name__}: {error}", unavailable)


def settings() -> Settings:
    """Read the settings; exits with a message that names what is wrong."""
    try:
        return read()
    except SettingsError as error:
        fail(f"{error}; its value is not valid JSON", INVALID)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            first, *rest = map(str, detail["loc"] or ("models",))
            name = ".".join(["SAG_" + first.upper(), *rest])
            console.print(f"[red]{escape(name)}[/]: {escape(detail['msg'])}", soft_wrap=True)
        sys.exit(INVALID)


def client() -> GenerationClient:
    """Create a client with the broker and namespace of the settings."""
    found = settings()
    return GenerationClient(
        found.broker_url.get_secret_value(),
        found.namespace,
        events_url=found.events_redis_url.get_secret_value(),
    )


def fail(message: str, status: int = FAILED) -> NoReturn:
    """Print a message and exit."""
    console.print(printable(message), style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(status)
