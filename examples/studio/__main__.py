"""The studio with everything that it needs on this machine: Redis, S3, a worker, the page."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import webbrowser
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
import uvicorn

from examples.studio.models import VARIABLE
from training.pixels.classes import CLASSES, name_of
from worker import embedded
from worker.config.models import PIXELS, shipped_environment

if TYPE_CHECKING:
    from types import FrameType

PORT = 8020
BUCKET = "studio"
#: Side of the pictures of the bundled model `default`, in pixels.
SIDE_PX = 64
#: The bundled models, as `STUDIO_MODELS` describes them.
MODELS = {"default": {}, PIXELS: {"classes": [name_of(label) for label in range(len(CLASSES))]}}


def main(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = PORT,
) -> None:
    """Start Redis, S3, a worker on the CPU and the page, until Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGTERM):  # in a background job SIGINT may be ignored
        signal.signal(number, _interrupt)
    try:
        with ExitStack() as stack:
            listening = stack.enter_context(_listen(port))
            print("starting Redis, S3 and a worker", file=sys.stderr)
            _replace_settings(_start(stack))
            url = "http://{}:{}/".format(*listening.getsockname())
            print(f"the studio is at {url} (Ctrl-C ends it)", file=sys.stderr)
            if os.environ.keys() & {"BROWSER", "DISPLAY", "WAYLAND_DISPLAY"}:
                # In a terminal alone, a text browser would take the terminal.
                threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
            _serve(listening)
    except KeyboardInterrupt:
        print("everything is stopped", file=sys.stderr)
    except RuntimeError as error:
        sys.exit(str(error))


def _listen(port: int) -> socket.socket:
    """A socket that already listens: a browser may come before the page is served."""
    try:
        return socket.create_server((embedded.LOOPBACK, port))
    except OSError as error:
        what = f"--port {port}: {error.strerror}; --port 0 takes one that is free"
        raise RuntimeError(what) from error


def _start(stack: ExitStack) -> dict[str, str]:
    """Redis, S3 and a worker that is ready, each ended by `stack`; gives the worker's settings."""
    folder = stack.enter_context(embedded.scratch())
    url = stack.enter_context(embedded.redis_server(folder))
    s3 = stack.enter_context(embedded.s3_server(folder, BUCKET))
    environment = {
        **s3.environment,
        **shipped_environment(),
        "SAG_BROKER_URL": url,
        "SAG_NAMESPACE": "sag",
        "SAG_DEVICE": "cpu",
        "SAG_S3_ENDPOINT_URL": s3.endpoint_url,
        "SAG_S3_BUCKET": BUCKET,
        "SAG_DRAIN_TIMEOUT_S": "1",
    }
    log = folder / "worker.log"
    command = [sys.executable, "-m", "worker", "work"]
    ready = lambda: "ready." in log.read_text(errors="replace")  # noqa: E731  # one expression
    stack.enter_context(embedded.running(command, log, ready, environment))
    return environment


def _replace_settings(environment: dict[str, str]) -> None:
    """Let the backend find these servers and models, whatever the shell has set for others."""
    for name in [name for name in os.environ if name.startswith(("SAG_", "AWS_"))]:
        del os.environ[name]
    os.environ.update(environment | {VARIABLE: json.dumps(MODELS)})
    os.environ.setdefault("STUDIO_SIDE_PX", str(SIDE_PX))


class _Server(uvicorn.Server):
    """One that leaves the pages that follow a task, and does not wait for them to leave."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for connection in self.server_state.connections:
            connection.transport.close()
        await super().shutdown(sockets)


def _serve(listening: socket.socket) -> None:
    """Serve the page until a signal comes, which uvicorn raises again when it is done."""
    config = uvicorn.Config("examples.studio.app:app", log_level="warning")
    _Server(config).run(sockets=[listening])


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    typer.run(main)
