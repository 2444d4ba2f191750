"""Queue depths and positions, from the lengths of the Redis lists that make up a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api_contracts import names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from api_contracts.request import GenerationRequest


def lists_of(models: Iterable[str]) -> list[str]:
    """The Redis lists of the models' queues, without repetition."""
    return list(dict.fromkeys(key for model in models for key in names.queue_lists(model)))


def length_pipeline(redis: Any, models: Iterable[str]) -> Any:  # noqa: ANN401  # sync or async
    """A pipeline that asks for the length of each list in `lists_of(models)`, in that order."""
    pipeline = redis.pipeline(transaction=False)
    for key in lists_of(models):
        pipeline.llen(key)
    return pipeline


def depths(models: Sequence[str], lengths: Sequence[int]) -> dict[str, int]:
    """Waiting messages by model, from the reply to `length_pipeline`."""
    known = dict(zip(lists_of(models), lengths, strict=True))
    return {model: sum(known[key] for key in names.queue_lists(model)) for model in models}


def positions(requests: Sequence[GenerationRequest], lengths: Sequence[object]) -> list[int | None]:
    """How many messages are ahead of each request's own, when they are sent in this order.

    A message waits for those of its own priority and of all higher ones. `lengths` is the reply to
    `length_pipeline` for the requests' models; empty, or with an error for a list, where a length
    is unknown: then the position is None.
    """
    lists = lists_of(request.model for request in requests)
    known = {key: each for key, each in zip(lists, lengths, strict=False) if isinstance(each, int)}
    found: list[int | None] = []
    for request in requests:
        ahead = names.queue_lists(request.model)[: request.priority + 1]
        if all(key in known for key in ahead):
            found.append(sum(known[key] for key in ahead))
            known[ahead[-1]] += 1
        else:
            found.append(None)
    return found
