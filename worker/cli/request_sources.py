"""What `sag-worker submit` submits: from flags, JSON, lines of prompts, or a picture of ours."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from api_contracts.errors import FieldError, InvalidRequest
from api_contracts.request import GenerationRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

#: Key of the text chunk of our pictures; as `worker.execution.image_files` writes it.
PNG_KEY = "sag-worker"
#: What a request says of its task, and nothing of its pictures.
_OF_THE_TASK = frozenset(
    {"deadline_s", "priority", "metadata", "traceparent", "preview_every", "callback_steps"}
)
#: A file's name that means standard input.
STDIN = "-"


def from_json(file: str) -> list[dict[str, Any]]:
    """Requests from a file: one object, a list of them, or one a line."""
    text = _read(file)
    try:
        found = json.loads(text)
    except ValueError:
        found = [_line(number, line) for number, line in _lines(text)]
    requests = found if isinstance(found, list) else [found]
    for number, request in enumerate(requests):
        if not isinstance(request, dict):
            raise _refused(f"request {number}", "is no object", "one object for each task")
    return requests


def from_prompts(file: str) -> list[dict[str, Any]]:
    """A request for each line that is not empty."""
    return [{"prompt": line} for _, line in _lines(_read(file))]


def from_picture(path: Path) -> dict[str, Any]:
    """The request that makes a picture again, from its text chunk.

    Every value that was used, and the picture's own seed: of many it is the one.
    """
    from PIL import Image  # noqa: PLC0415  # the worker extra

    try:
        with Image.open(path) as picture:
            picture.load()
            text = getattr(picture, "text", {}).get(PNG_KEY)
    except OSError as error:
        raise _refused(str(path), f"can't be read as a picture: {error}", "a PNG of ours") from None
    if text is None:
        raise _refused(str(path), f"has no text chunk `{PNG_KEY}`", "a PNG that a worker made")
    return _again(json.loads(text))


def with_flags(
    requests: Sequence[dict[str, Any]], given: dict[str, Any], set_: Sequence[str]
) -> list[dict[str, Any]]:
    """The requests, with what the command line says over what they said."""
    fields = {name: value for name, value in given.items() if value is not None}
    for each in set_:
        name, equals, value = each.partition("=")
        if not equals or name not in GenerationRequest.model_fields:
            raise _refused("--set", f"{each!r} is not NAME=VALUE", "a field of the request")
        fields[name] = _value(value)
    return [{**request, **fields} for request in requests]


def _again(origin: dict[str, Any]) -> dict[str, Any]:
    """The request of one picture, out of the parameters of all that were made with it."""
    used = {
        name: value
        for name, value in origin["parameters"].items()
        if value is not None and name not in _OF_THE_TASK
    }
    prompts = used.get("prompt")
    number = origin["index"] // used.pop("num_images_per_prompt", 1)
    alone = not isinstance(prompts, list) or len(prompts) == 1
    for name in ("latents", "prompt_embeds", "negative_prompt_embeds"):
        if name in used and not (alone and origin["index"] == 0):
            raise _refused(name, "holds more than this picture's", "a task of one picture")
    for name in ("prompt", "negative_prompt"):
        if isinstance(used.get(name), list):
            used[name] = used[name][number]
    # As asked for: what the model has of its own may be one that nobody can ask for.
    scheduler = origin["request"].get("scheduler")
    return used | {"scheduler": scheduler, "seed": origin["seed"]}


def _value(text: str) -> Any:  # noqa: ANN401  # any JSON
    """JSON, and what is none as the text that it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read(file: str) -> str:
    if file == STDIN:
        return sys.stdin.read()
    try:
        with open(file, encoding="utf-8") as lines:  # noqa: PTH123  # `-` is no path
            return lines.read()
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(file, f"can't be read: {error}", "a text file") from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _line(number: int, line: str) -> Any:  # noqa: ANN401  # any JSON
    try:
        return json.loads(line)
    except ValueError as error:
        raise _refused(f"line {number}", f"is no JSON: {error}", "an object a line") from None


def _refused(where: str, what: str, limit: str) -> InvalidRequest:
    return InvalidRequest([FieldError(where=where, what=what, limit=limit)])
