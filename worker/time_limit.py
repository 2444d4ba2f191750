"""A time limit for calls that have none of their own."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def call_within(limit_s: float, call: Callable[[], T]) -> T:
    """Return what `call` returns; raises `TimeoutError` when it takes longer than `limit_s`.

    `call` runs on a daemon thread, which is abandoned after a timeout.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:  # noqa: BLE001  # raised where the result is waited for
            future.set_exception(error)

    threading.Thread(target=run, name=f"within {limit_s:g} s", daemon=True).start()
    if not wait([future], limit_s).done:
        raise TimeoutError(f"no answer within {limit_s:g} s")
    return future.result()
