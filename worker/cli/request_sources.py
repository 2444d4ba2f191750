"""The requests of `sag-worker submit`: from flags, JSON, lines of prompts, or a worker's PNG."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from api_contracts.errors import FieldError, InvalidRequest
from api_contracts.request import GenerationRequest
from api_contracts.request_types import MIN_SIDE_PX, SIDE_MULTIPLE_PX
from worker.config.models import ModelDefaults

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

#: Key of the text chunk in PNGs, as `worker.execution.image_files` writes it.
PNG_KEY = "sag-worker"
#: Fields of a request that do not affect its images.
_TASK_FIELDS = frozenset(
    {"deadline_s", "priority", "metadata", "traceparent", "preview_every", "callback_steps"}
)
#: Values that need not be sent: the contract's own, where no setting gives a model another. A
#: worker that does not know a field serves requests without it.
_DEFAULTS = {
    name: field.default
    for name, field in GenerationRequest.model_fields.items()
    if name not in ModelDefaults.model_fields
}
#: Fields whose default a setting may change, and which are newer than others such: a worker from
#: before them used the contract's default where the request left them out.
_NEWER = frozenset({"sag_blur_sigma", "sag_mask_threshold"})
#: Fields whose file has a row for each image or prompt.
_OF_ALL_IMAGES = (
    "latents", "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)  # fmt: skip
#: Fields that may have a value for each prompt, or for each class.
_OF_EACH = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "class_labels")
#: File name for standard input.
STDIN = "-"


def from_json(file: str) -> list[dict[str, Any]]:
    """Read requests from a file: one object, a list of them, or one a line."""
    text = _read(file)
    try:
        found = json.loads(text)
    except ValueError:
        found = [_parse_line(number, line) for number, line in _lines(text)]
    requests = found if isinstance(found, list) else [found]
    for number, request in enumerate(requests):
        if not isinstance(request, dict):
            raise _invalid(f"request {number}", "is not an object", "one object for each task")
    return requests


def from_prompts(file: str) -> list[dict[str, Any]]:
    """Make a request of each line that is not empty."""
    return [{"prompt": line} for _, line in _lines(_read(file))]


def from_image_file(path: Path) -> dict[str, Any]:
    """Return the request that makes a worker's PNG again, from its text chunk.

    It has every value that was used and is not the contract's default, and the seed of this image
    alone, whatever was made with it.
    """
    from PIL import Image  # noqa: PLC0415  # the worker extra

    try:
        with Image.open(path) as image:
            image.load()
            text = getattr(image, "text", {}).get(PNG_KEY)
    except OSError as error:
        raise _invalid(str(path), f"cannot be read as an image: {error}", "a PNG") from None
    if text is None:
        raise _invalid(str(path), f"has no text chunk `{PNG_KEY}`", "a PNG that a worker made")
    return _single_image(json.loads(text))


def with_flags(
    requests: Sequence[dict[str, Any]], given: dict[str, Any], set_: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the requests with the values of the command line in place of their own."""
    fields = {name: value for name, value in given.items() if value is not None}
    for each in set_:
        name, equals, value = each.partition("=")
        if not equals or name not in GenerationRequest.model_fields:
            raise _invalid("--set", f"{each!r} is not NAME=VALUE", "a field of the request")
        fields[name] = _json_or_text(value)
    return [{**request, **fields} for request in requests]


def _single_image(origin: dict[str, Any]) -> dict[str, Any]:
    """Return the request of one image, from the parameters of all that were made with it."""
    asked = origin["request"]
    unset = {n: GenerationRequest.model_fields[n].default for n in _NEWER - asked.keys()}
    defaults = _DEFAULTS | unset
    used = {
        name: value
        for name, value in origin["parameters"].items()
        if value is not None and name not in _TASK_FIELDS and value != defaults.get(name)
    }
    if "class_labels" in asked:  # null is no class
        used.setdefault("class_labels", None)
    for side in ("height", "width"):
        size = used.get(side, MIN_SIDE_PX)
        if size < MIN_SIDE_PX or size % SIDE_MULTIPLE_PX:  # the model's own, no request's
            del used[side]
    prompts = used.get("prompt", used.get("class_labels"))
    number = origin["index"] // used.pop("num_images_per_prompt", 1)
    is_single = not isinstance(prompts, list) or len(prompts) == 1
    for name in _OF_ALL_IMAGES:
        if name in used and not (is_single and origin["index"] == 0):
            raise _invalid(name, "belongs to several images", "a task of one image")
    for name in _OF_EACH:
        if isinstance(used.get(name), list):
            used[name] = used[name][number]
    # As requested: the scheduler used may be the model's own, which has no name in requests.
    scheduler = asked.get("scheduler")
    return used | {"scheduler": scheduler, "seed": origin["seed"]}


def _json_or_text(text: str) -> Any:  # noqa: ANN401  # any JSON
    """Parse JSON; return anything else as it is."""
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
        raise _invalid(file, f"cannot be read: {error}", "a text file") from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _parse_line(number: int, line: str) -> Any:  # noqa: ANN401  # any JSON
    try:
        return json.loads(line)
    except ValueError as error:
        raise _invalid(f"line {number}", f"is not JSON: {error}", "an object a line") from None


def _invalid(where: str, what: str, limit: str) -> InvalidRequest:
    return InvalidRequest([FieldError(where=where, what=what, limit=limit)])
