"""The laws that hold after every run; each is a function from the evidence to its violations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.chaos import other_laws, store_laws, stream_laws

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.evidence import Evidence
    from tests.chaos.stream_laws import Broken

LAWS: tuple[Callable[[Evidence], Broken], ...] = (
    stream_laws.every_task_ends,
    stream_laws.one_end,
    stream_laws.nothing_after_the_end,
    stream_laws.numbers_without_gaps,
    stream_laws.attempts_never_fall,
    stream_laws.one_owner,
    stream_laws.one_fence_one_claim,
    stream_laws.no_takeover_from_a_living_worker,
    stream_laws.clients_read_the_stream,
    stream_laws.clients_raise_documented_errors,
    stream_laws.ends_are_expected,
    store_laws.pictures_are_the_reference,
    store_laws.manifests_agree,
    store_laws.record_agrees,
    store_laws.celery_agrees,
    store_laws.ends_are_pushed,
    store_laws.schemas_hold,
    store_laws.objects_are_known,
    store_laws.keys_are_known,
    store_laws.nothing_is_left,
    *other_laws.LAWS,
)
#: Laws whose violation means that a task ended twice or had two owners at once.
DOUBLING = (stream_laws.one_end, stream_laws.one_owner, stream_laws.one_fence_one_claim)


@dataclass(frozen=True)
class Violation:
    """A violation of a law."""

    law: str
    #: A task's id or a key.
    what: str
    how: str


def check(evidence: Evidence) -> list[Violation]:
    """All violations."""
    return [Violation(law.__name__, what, how) for law in LAWS for what, how in law(evidence)]
