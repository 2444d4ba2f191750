"""A side of a benchmark in a process of its own, called over a pipe.

In one process two sides share torch's threads: libgomp stops spinning at barriers when a process
has more threads in its pools than the machine has cores, which slows down the side on the second
pool. An idle side's process is blocked on its pipe.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from worker.process_guard import guard_children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

Made = TypeVar("Made")
Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


class SideError(RuntimeError):
    """A side raised an error, or its process ended; the message has its traceback or status."""


class Side(Generic[Made]):
    """An object in another process, and the functions of it that are called there."""

    def __init__(self, name: str, process: SpawnProcess, pipe: Connection) -> None:
        """See `start`."""
        self._name, self._process, self._pipe = name, process, pipe

    def remote(
        self, function: Callable[Concatenate[Made, Arguments], Returned]
    ) -> Callable[Arguments, Returned]:
        """`function` with the object as its first argument, called there; raises `SideError`.

        It is sent by its name; its arguments and what it returns are pickled.
        """

        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
            returned: Returned = self.send(function, args, kwargs)
            return returned

        return call

    def send(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:  # noqa: ANN401  # any call's
        """Send one message, and wait for its answer."""
        try:
            self._pipe.send((function, args, kwargs))
            value, failure = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            message = f"the process of {self._name} ended: status {self._process.exitcode}"
            raise SideError(message) from error
        if failure is not None:
            message = f"{self._name} failed:\n{failure}"
            raise SideError(message)
        return value


@contextmanager
def start(
    name: str,
    make: Callable[Arguments, Made],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Iterator[Side[Made]]:
    """Start a process and make the side's object there; the process is killed on leaving.

    `name` is that of the errors. Nothing needs a farewell: what a side holds ends with its process.
    """
    guard_children()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), name=name, daemon=True)
    with ours, theirs:
        process.start()
        theirs.close()  # otherwise the end of the process would not end `recv`
        try:
            side: Side[Made] = Side(name, process, ours)
            side.send(make, args, kwargs)
            yield side
        finally:
            process.kill()
            process.join()


def once(
    name: str,
    function: Callable[Arguments, Returned],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Returned:
    """Call a function in a process of its own."""
    with start(name, function, *args, **kwargs) as side:
        return side.remote(_itself)()


def _itself(made: Made) -> Made:
    return made


def _serve(pipe: Connection) -> None:
    """Make the object that the first message says; answer each later one, a call with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent ends this process
    # A semaphore (tqdm has one) is then unlinked when it is made, so a killed process leaves none.
    multiprocessing.set_start_method("fork", force=True)
    made: tuple[Any, ...] = ()
    with suppress(EOFError, BrokenPipeError):  # the parent has ended
        while True:
            try:
                function, args, kwargs = pipe.recv()
                value = function(*made, *args, **kwargs)
                pipe.send((value if made else None, None))
                made = made or (value,)
            except (EOFError, BrokenPipeError):
                raise
            except Exception:  # noqa: BLE001  # the parent raises it
                pipe.send((None, traceback.format_exc()))
