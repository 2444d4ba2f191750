"""What the evaluation found, as Markdown for the model card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.shapes import SIDE_PX

if TYPE_CHECKING:
    from training.evaluate import Evaluation
    from training.limits import Limit
    from training.shares import Share


def measurements(evaluation: Evaluation) -> str:
    """The section on the held-out prompts, with and without self-attention guidance."""
    first = evaluation.results[0]
    asked = first.shares["everything"].of
    names = [*first.shares, "everything, one shape", "everything, two shapes"]
    columns = [
        [*result.shares.values(), result.one_shape, result.two_shapes]
        for result in evaluation.results
    ]
    head = [f"`sag_scale` {result.sag_scale:g}" for result in evaluation.results]
    rows = [
        [name, *(_percent(column[row]) for column in columns)] for row, name in enumerate(names)
    ]
    tuned = ", ".join(
        f"{tried.guidance_scale:g}: {100 * tried.everything.share:.1f} %"
        for tried in evaluation.tuning
    )
    return f"""\
## Does it draw what was asked?

{asked} prompts that training never saw, one picture each, {evaluation.steps} DDIM steps, \
`guidance_scale` {evaluation.guidance_scale:g}, diffusers' own `StableDiffusionSAGPipeline`, the \
same noise in every column. Share of pictures right in per cent, with Wilson's 95 % interval; a \
picture of two shapes counts only when both are right. A judge without a network finds the \
shapes and their colours in the pixels before it knows what was asked; it reads the drawn \
training pictures without an error.

{table(["right in", *head], rows)}

{_sag_sentence(evaluation)} The guidance scale was chosen on {evaluation.tuning[0].everything.of} \
pictures of other unseen prompts, half of them with self-attention guidance; everything was \
right, by guidance scale, in {tuned}."""


def _sag_sentence(evaluation: Evaluation) -> str:
    """Whether self-attention guidance helped: only where the intervals leave no doubt."""
    without, *with_it = [result.shares["everything"] for result in evaluation.results]
    if any(counted.low > without.high for counted in with_it):
        return "Self-attention guidance makes this model's pictures right more often."
    if any(counted.high < without.low for counted in with_it):
        return "Self-attention guidance makes this model's pictures right less often."
    return (
        "Self-attention guidance doesn't help on this model by this measure, nor harm it: the "
        "differences between the columns are within the intervals."
    )


def limits(evaluation: Evaluation) -> str:
    """The section on what the model was not trained for."""
    head = ["asked for", "example", "number of shapes", "background", "everything"]
    rows = [
        [limit.name, f'"{limit.example}"', *map(_count, _counted(limit))]
        for limit in evaluation.limits
    ]
    return f"""\
## What it can't do

It knows nothing but these shapes, in the words and the word order above. Departures from them, \
tried on one large shape (the last row aside), with `sag_scale` 0; how many pictures were right:

{table(head, rows)}

Pictures of another size were reduced or enlarged to {SIDE_PX} px before they were judged. It has \
no safety checker, since it has nothing to hide, and its pictures say nothing about how \
self-attention guidance fares on photographs."""


def _counted(limit: Limit) -> tuple[Share, Share, Share]:
    return limit.count, limit.background, limit.everything


def _percent(counted: Share) -> str:
    return f"{100 * counted.share:.1f} ({100 * counted.low:.1f} to {100 * counted.high:.1f})"


def _count(counted: Share) -> str:
    return f"{counted.right} of {counted.of}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
