"""The classes of the pixel model. Imports neither torch nor numpy."""

from __future__ import annotations

from training.shapes import COLOURS, SHAPES

#: A class is a colour and a shape; its label is its place here.
CLASSES = tuple((colour, shape) for shape in SHAPES for colour in COLOURS)
#: The label of no class, for classifier-free guidance.
NULL_CLASS = len(CLASSES)


def name_of(label: int) -> str:
    """The class in words."""
    colour, shape = CLASSES[label]
    return f"{colour} {shape}"


def label_of(colour: str, shape: str) -> int:
    """The label of a class."""
    return CLASSES.index((colour, shape))
