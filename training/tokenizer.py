"""A CLIP tokenizer trained on the captions: byte-level BPE, so that any text survives it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
#: Tokens of one prompt, the two markers included; the longest caption takes 14.
LENGTH = 32
MERGES = 100


def train(captions: Iterable[str]) -> CLIPTokenizer:
    """A tokenizer whose alphabet is all bytes and whose merges are those of the captions."""
    letters = sorted(ByteLevel.alphabet())
    alphabet = [*letters, *(letter + END_OF_WORD for letter in letters)]
    model = _assemble(alphabet, []).backend_tokenizer
    trainer = BpeTrainer(
        vocab_size=len(alphabet) + MERGES,
        initial_alphabet=letters,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    model.train_from_iterator(captions, trainer)
    learned = json.loads(model.to_str())["model"]["merges"]
    return _assemble(alphabet, [(left, right) for left, right in learned])


def _assemble(alphabet: list[str], merges: list[tuple[str, str]]) -> CLIPTokenizer:
    tokens = [*alphabet, *(left + right for left, right in merges), START, END]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(dict.fromkeys(tokens))},
        merges=merges,
        model_max_length=LENGTH,
    )
