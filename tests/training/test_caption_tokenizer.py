"""The tokenizer keeps the text that it is given."""

from __future__ import annotations

import random

import pytest

from training import tokenizer as bpe
from training.denoiser import tokens
from training.shapes import draw_scene

RNG = random.Random(0)
CAPTIONS = [draw_scene(RNG, held_out=False).caption for _ in range(300)]
TOKENIZER = bpe.train(CAPTIONS)


@pytest.mark.parametrize(
    "text", [*CAPTIONS[:5], "zebra", "naïve café", "猫", "🦓", "a red star, 2 x 3!", ""]
)
def test_text_survives(text: str) -> None:
    """Decoding the tokens of any text gives it back, but for the spaces around punctuation."""
    decoded = TOKENIZER.decode(TOKENIZER(text).input_ids, skip_special_tokens=True)
    assert decoded.replace(" ", "") == text.replace(" ", "")


def test_every_caption_fits() -> None:
    """No caption is cut: its end marker is within the text encoder's length."""
    longest = max(len(ids) for ids in TOKENIZER(CAPTIONS).input_ids)
    assert longest <= bpe.LENGTH
    assert tokens(TOKENIZER, CAPTIONS[:3]).shape == (3, bpe.LENGTH)


def test_training_is_deterministic() -> None:
    """The same captions give the same tokens."""
    again = bpe.train(CAPTIONS)
    assert again(CAPTIONS).input_ids == TOKENIZER(CAPTIONS).input_ids
