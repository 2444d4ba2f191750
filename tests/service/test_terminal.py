"""`submit` and `watch` draw pictures on a terminal, and nowhere else."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import sys
import termios
import threading
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from tests import fork_server
from tests.service.conftest import END_S
from tests.service.conftest import SHORT as REQUEST
from worker.cli import terminal_image

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Service

PROMPT = "a large red star on a blue background"
#: One row of the UNet call for each step.
PLAIN = ("--set", "guidance_scale=1.0", "--set", "sag_scale=0.0")
SHORT = ("--steps", "3", "--seed", "7", *PLAIN)
TRUE_COLOUR = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
ROWS, COLUMNS = 40, 100
BLOCK = "▀".encode()
#: Variables that describe a terminal.
VARIABLES = ("TERM", "COLORTERM", "TERM_PROGRAM", "LC_TERMINAL", "TMUX", "NO_COLOR", "FORCE_COLOR")


def environment(service: Service, terminal: dict[str, str]) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**others, **service.environment, **terminal}


def at_terminal(
    service: Service, terminal: dict[str, str], *arguments: str, stdout: int | None = None
) -> tuple[int, bytes]:
    """Run a command in a terminal; gives its exit status and all bytes that it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    command = fork_server.start(
        [sys.executable, "-m", "worker", *arguments],
        environment(service, terminal),
        (theirs, theirs if stdout is None else stdout, theirs),
    )
    os.close(theirs)
    timer = threading.Timer(END_S, command.kill)
    timer.start()
    sent = b""
    try:
        while data := os.read(ours, 65536):
            sent += data
    except OSError:  # EIO on Linux: the other end was closed
        pass
    finally:
        os.close(ours)
        timer.cancel()
    return command.wait(), sent


def saved(folder: Path) -> bytes:
    """The only picture in a folder."""
    (file,) = folder.glob("*.png")
    return file.read_bytes()


def drawn(data: bytes) -> bytes:
    """The bytes that draw a picture as half blocks on this terminal."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=COLUMNS)
    console.print(terminal_image.draw(data, COLUMNS, terminal_image.MAX_ROWS))
    return file.getvalue().replace("\n", "\r\n").encode()


def test_previews_and_then_the_picture(service: Service, tmp_path: Path) -> None:
    """`submit` draws previews as half blocks below the bar, and at the end the picture, once."""
    status, sent = at_terminal(
        service, TRUE_COLOUR, "submit", PROMPT, "--steps", "20", "--preview-every", "1", "--wait",
        *PLAIN, "--out", str(tmp_path),
    )  # fmt: skip
    assert status == 0
    end = drawn(saved(tmp_path))
    assert sent.endswith(end)
    before = sent.removesuffix(end)
    assert BLOCK in before
    final = before[before.rindex(b"\x1b[1A") :]  # what remains of the bars
    assert b"20/20" in final
    assert BLOCK not in final
    assert sent.count(b"\x1b[?25l") == sent.count(b"\x1b[?25h") == 1  # the cursor is shown again


def test_watch_draws_the_pictures_of_other_callers(service: Service) -> None:
    """`watch` draws the previews of another caller's task, and the picture, fetched by its URL."""
    handle = service.client.submit(
        REQUEST | {"prompt": PROMPT, "num_inference_steps": 40, "preview_every": 1}
    )
    status, sent = at_terminal(service, TRUE_COLOUR, "watch", handle.task_id)
    assert status == 0
    bars = sent[: sent.index(b"0.png?")]
    assert BLOCK in bars
    assert BLOCK in sent.removeprefix(bars)


@pytest.mark.parametrize(
    ("terminal", "options"),
    [
        (TRUE_COLOUR, ("--preview", "none")),
        (TRUE_COLOUR | {"NO_COLOR": "1"}, ("--preview", "blocks")),
        (TRUE_COLOUR | {"TERM": "dumb"}, ("--preview", "blocks")),
    ],
)
def test_pictures_can_be_turned_off(
    service: Service, terminal: dict[str, str], options: tuple[str, ...]
) -> None:
    """An option, `NO_COLOR` or a dumb terminal, which gets no escapes, turns pictures off."""
    status, sent = at_terminal(
        service, terminal, "submit", PROMPT, *SHORT, "--preview-every", "1", "--wait", *options
    )
    assert status == 0
    assert b"0.png?" in sent
    assert BLOCK not in sent
    assert (b"\x1b" in sent) is (terminal["TERM"] != "dumb")


@pytest.mark.parametrize("way", ["auto", "blocks"])
def test_no_escape_in_a_pipe(service: Service, tmp_path: Path, way: str) -> None:
    """Without a terminal only text is written, whatever `--preview` is."""
    done = fork_server.run(
        [sys.executable, "-m", "worker", "submit", PROMPT, *SHORT, "--preview-every", "1",
         "--preview", way, "--out", str(tmp_path)],
        environment(service, TRUE_COLOUR), timeout_s=END_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert BLOCK.decode() not in done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_no_picture_is_drawn_when_stdout_is_a_pipe(service: Service, tmp_path: Path) -> None:
    """With stdout a pipe the terminal shows the bars alone; the pipe has a line a task and URL."""
    with (tmp_path / "out").open("wb") as out:
        status, sent = at_terminal(
            service, TRUE_COLOUR, "submit", PROMPT, *SHORT, "--preview-every", "1", "--wait",
            stdout=out.fileno(),
        )  # fmt: skip
    assert status == 0
    assert b"3/3" in sent
    assert BLOCK not in sent
    piped = (tmp_path / "out").read_bytes()
    assert len(piped.splitlines()) == 2
    assert b"\x1b" not in piped


def test_json_on_a_terminal_is_json(service: Service) -> None:
    """With `--json` every line is JSON, and no picture is drawn."""
    status, sent = at_terminal(
        service, TRUE_COLOUR, "submit", PROMPT, *SHORT, "--preview-every", "1", "--wait", "--json",
        "--preview", "blocks",
    )  # fmt: skip
    assert status == 0
    assert json.loads(sent.splitlines()[-1])["type"] == "succeeded"
    assert all(json.loads(line) for line in sent.splitlines())
    assert b"\x1b" not in sent


def test_without_pillow_nothing_is_drawn(service: Service, tmp_path: Path) -> None:
    """The command works without the worker's extra."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['PIL'] = None\n")
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    status, sent = at_terminal(
        service, TRUE_COLOUR | path, "submit", PROMPT, *SHORT, "--preview-every", "1", "--wait"
    )
    assert status == 0
    assert b"0.png?" in sent
    assert BLOCK not in sent


def test_several_are_shown_side_by_side(service: Service, tmp_path: Path) -> None:
    """Three tasks have three previews in one row, then three pictures below each other."""
    prompts = tmp_path / "prompts"
    prompts.write_text(f"{PROMPT}\n" * 3)
    status, sent = at_terminal(
        service, TRUE_COLOUR, "submit", "--prompts", str(prompts), "--steps", "15",
        "--preview-every", "1", *PLAIN, "--out", str(tmp_path),
    )  # fmt: skip
    assert status == 0
    bars, *pictures = sent.split(b".png\r\n")
    lines = [re.sub(rb"\x1b\[[\d;?]*[A-Za-z]", b"", line) for line in bars.split(b"\n")]
    side_by_side = b"  ".join([BLOCK * 20] * 3)
    assert any(line.strip().startswith(side_by_side) for line in lines)
    assert [part.count(BLOCK) for part in pictures] == [40 * 20] * 3
