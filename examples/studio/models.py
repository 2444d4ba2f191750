"""The models that the page offers, by their aliases in `STUDIO_MODELS`."""

from __future__ import annotations

import os
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from api_contracts.names import DEFAULT_MODEL, MODEL_PATTERN
from api_contracts.request_types import ADAPTER_PATTERN, MAX_LABEL

VARIABLE = "STUDIO_MODELS"

Alias = Annotated[str, Field(pattern=MODEL_PATTERN)]
AdapterName = Annotated[str, Field(pattern=ADAPTER_PATTERN)]
ClassName = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=0, le=MAX_LABEL + 1)]


class Model(BaseModel):
    """What the page must know of a model, which the workers' settings describe for the workers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    classes: list[ClassName] | Count | None = Field(
        default=None,
        description="Of a pixel-space model: the names of its classes by their labels, or how many "
        "there are. None: it draws from a prompt.",
    )
    adapters: list[AdapterName] = Field(default=[], description="Those that requests may name.")

    @model_validator(mode="after")
    def _check_adapters(self) -> Self:
        if len({*self.adapters}) < len(self.adapters):
            raise ValueError("an adapter is there twice")
        if self.adapters and self.classes is not None:
            raise ValueError("a pixel-space model takes no adapters")
        return self


_MODELS = TypeAdapter[dict[str, Model]](Annotated[dict[Alias, Model], Field(min_length=1)])


def from_environment() -> dict[str, Model]:
    """The models of `STUDIO_MODELS`, a JSON object; `default`, which draws prompts, unless set.

    Raises `ValueError`, which names the variable and what is wrong.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return {DEFAULT_MODEL: Model()}
    try:
        return _MODELS.validate_json(text)
    except ValidationError as error:
        faults = [f"{_path(each['loc'])}{each['msg']}" for each in error.errors()]
        raise ValueError(f"{VARIABLE}: {'; '.join(faults)}") from None


def _path(location: tuple[int | str, ...]) -> str:
    return "".join(f"{part}: " for part in location)


def as_list(models: dict[str, Model]) -> list[dict[str, Any]]:
    """The models in a list: JavaScript sorts some names of an object."""
    return [{"name": name, **model.model_dump()} for name, model in models.items()]
