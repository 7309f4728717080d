"""Captions: cleaning and drawing. What a tokenizer normalises itself (case, accents) is left to it."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence

import numpy as np


def clean(text: str) -> str:
    """Entities resolved (also doubly escaped ones, common on the web), NFC, runs of white space as one space."""
    if "&" in text:
        text = html.unescape(html.unescape(text))
    return " ".join(unicodedata.normalize("NFC", text).split())


def draw(captions: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """`count` of the captions: none twice while there are enough, else every one before any comes again."""
    if len(captions) == 1:
        return [captions[0]] * count
    order = [index for _ in range(-(-count // len(captions))) for index in rng.permutation(len(captions)).tolist()]
    return [captions[index] for index in order[:count]]
