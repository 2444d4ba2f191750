"""How many messages wait, by the lengths of the Redis lists that make up the queues."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api_contracts import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from api_contracts.request import GenerationRequest


def lists_of(models: Iterable[str]) -> list[str]:
    """The lists of the models' queues, each once."""
    return list(dict.fromkeys(key for model in models for key in names.queue_lists(model)))


def depths(models: Sequence[str], lengths: Mapping[str, int]) -> dict[str, int]:
    """The messages of each model's queue, by the lengths of `lists_of` them."""
    return {model: sum(lengths[key] for key in names.queue_lists(model)) for model in models}


def positions(
    requests: Sequence[GenerationRequest], lengths: Mapping[str, Any]
) -> list[int | None]:
    """How many messages each request's own finds before it in its queue, sent in this order.

    Those are the ones of its priority and of all before it, by the lengths of `lists_of` the
    requests' models; None where one of them is not known.
    """
    waiting = {key: length for key, length in lengths.items() if isinstance(length, int)}
    found: list[int | None] = []
    for request in requests:
        before = names.queue_lists(request.model)[: request.priority + 1]
        is_known = all(key in waiting for key in before)
        found.append(sum(waiting[key] for key in before) if is_known else None)
        if is_known:
            waiting[before[-1]] += 1
    return found
