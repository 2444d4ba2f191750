"""Pictures of `submit` and `watch` on a real terminal, and none anywhere else."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from tests.service.conftest import END_S
from worker.cli import terminal_image

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Service

PROMPT = "a large red star on a blue background"
SHORT = ("--steps", "3", "--seed", "7")
TRUE = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
ROWS, COLUMNS = 40, 100
BLOCK = "▀".encode()
#: What says of itself which terminal it is.
SPEAKING = ("TERM", "COLORTERM", "TERM_PROGRAM", "LC_TERMINAL", "TMUX", "NO_COLOR", "FORCE_COLOR")


def environment(service: Service, terminal: dict[str, str]) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if name not in SPEAKING}
    return {**mine, **service.environment, **terminal}


def at_terminal(
    service: Service, terminal: dict[str, str], *arguments: str, stdout: int | None = None
) -> tuple[int, bytes]:
    """Run a command in a terminal; gives its status and every byte that it sent there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    command = subprocess.Popen(
        [sys.executable, "-m", "worker", *arguments], env=environment(service, terminal),
        stdin=theirs, stdout=theirs if stdout is None else stdout, stderr=theirs,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    late = threading.Timer(END_S, command.kill)
    late.start()
    sent = b""
    try:
        while some := os.read(ours, 65536):
            sent += some
    except OSError:  # how Linux says that nobody has the other end any more
        pass
    finally:
        os.close(ours)
        late.cancel()
    return command.wait(), sent


def saved(folder: Path) -> bytes:
    """The one picture there."""
    (file,) = folder.glob("*.png")
    return file.read_bytes()


def drawn(data: bytes) -> bytes:
    """A finished picture as half blocks on that terminal."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=COLUMNS)
    console.print(terminal_image.draw(data, COLUMNS, terminal_image.MAX_ROWS))
    return file.getvalue().replace("\n", "\r\n").encode()


def test_previews_and_then_the_picture(service: Service, tmp_path: Path) -> None:
    """Half blocks beneath the bar while it is made; at the end the picture itself, once."""
    status, sent = at_terminal(
        service, TRUE, "submit", PROMPT, "--steps", "40", "--preview-every", "1", "--wait",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert status == 0
    end = drawn(saved(tmp_path))
    assert sent.endswith(end)
    before = sent.removesuffix(end)
    assert BLOCK in before
    final = before[before.rindex(b"\x1b[1A") :]  # what stays of the bars
    assert b"40/40" in final
    assert BLOCK not in final
    assert sent.count(b"\x1b[?25l") == sent.count(b"\x1b[?25h") == 1  # the cursor is back


def test_whoever_watches_sees_it_too(service: Service) -> None:
    """A task that another submitted; its picture is fetched by its URL."""
    handle = service.client.submit(
        {"prompt": PROMPT, "num_inference_steps": 100, "preview_every": 1}
    )
    status, sent = at_terminal(service, TRUE, "watch", handle.task_id)
    assert status == 0
    bars = sent[: sent.index(b"0.png?")]
    assert BLOCK in bars
    assert BLOCK in sent.removeprefix(bars)


@pytest.mark.parametrize(
    ("terminal", "options"),
    [
        (TRUE, ("--preview", "none")),
        (TRUE | {"NO_COLOR": "1"}, ("--preview", "blocks")),
        (TRUE | {"TERM": "dumb"}, ("--preview", "blocks")),
    ],
)
def test_who_wants_none_gets_none(
    service: Service, terminal: dict[str, str], options: tuple[str, ...]
) -> None:
    """By option, by `NO_COLOR`, or because the terminal is dumb; a dumb one gets no escape."""
    status, sent = at_terminal(
        service, terminal, "submit", PROMPT, *SHORT, "--preview-every", "1", "--wait", *options
    )
    assert status == 0
    assert b"0.png?" in sent
    assert BLOCK not in sent
    assert (b"\x1b" in sent) is (terminal["TERM"] != "dumb")


@pytest.mark.parametrize("way", ["auto", "blocks"])
def test_no_escape_in_a_pipe(service: Service, tmp_path: Path, way: str) -> None:
    """Whatever was named: words and nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", "worker", "submit", PROMPT, *SHORT, "--preview-every", "1",
         "--preview", way, "--out", str(tmp_path)],
        env=environment(service, TRUE), capture_output=True, check=False, timeout=END_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    assert BLOCK not in done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_a_picture_is_not_beside_a_pipe(service: Service, tmp_path: Path) -> None:
    """With the URLs in a pipe the terminal has the bars alone, and the pipe one line for each."""
    with (tmp_path / "out").open("wb") as out:
        status, sent = at_terminal(
            service, TRUE, "submit", PROMPT, *SHORT, "--preview-every", "1", "--wait",
            stdout=out.fileno(),
        )  # fmt: skip
    assert status == 0
    assert b"3/3" in sent
    assert BLOCK not in sent
    piped = (tmp_path / "out").read_bytes()
    assert len(piped.splitlines()) == 2
    assert b"\x1b" not in piped


def test_json_on_a_terminal_is_json(service: Service) -> None:
    """Every line, with no picture between them."""
    status, sent = at_terminal(
        service, TRUE, "submit", PROMPT, *SHORT, "--preview-every", "1", "--wait", "--json",
        "--preview", "blocks",
    )  # fmt: skip
    assert status == 0
    assert json.loads(sent.splitlines()[-1])["type"] == "succeeded"
    assert all(json.loads(line) for line in sent.splitlines())
    assert b"\x1b" not in sent


def test_a_caller_without_the_extra_is_served(service: Service, tmp_path: Path) -> None:
    """Without Pillow nothing is drawn."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['PIL'] = None\n")
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    status, sent = at_terminal(
        service, TRUE | path, "submit", PROMPT, *SHORT, "--preview-every", "1", "--wait"
    )
    assert status == 0
    assert b"0.png?" in sent
    assert BLOCK not in sent


def test_several_are_shown_side_by_side(service: Service, tmp_path: Path) -> None:
    """Three tasks, three previews in one row; then three pictures, one under the other."""
    prompts = tmp_path / "prompts"
    prompts.write_text(f"{PROMPT}\n" * 3)
    status, sent = at_terminal(
        service, TRUE, "submit", "--prompts", str(prompts), "--steps", "60", "--preview-every",
        "1", "--out", str(tmp_path),
    )  # fmt: skip
    assert status == 0
    bars, *pictures = sent.split(b".png\r\n")
    lines = [re.sub(rb"\x1b\[[\d;?]*[A-Za-z]", b"", line) for line in bars.split(b"\n")]
    side_by_side = b"  ".join([BLOCK * 20] * 3)
    assert any(line.strip().startswith(side_by_side) for line in lines)
    assert [part.count(BLOCK) for part in pictures] == [40 * 20] * 3
