"""Captions: cleaning, drawing, templates. What a tokenizer normalises itself (case, accents) is left to it."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
"""Soft hyphen, zero-width space, word joiner, byte order mark. Joiners that scripts and emoji need stay."""


def clean(text: str) -> str:
    """Entities resolved (also doubly escaped ones, common on the web), NFKC, runs of white space as one space.

    NFKC, so that ligatures, full-width letters and styled letters are the words that they show.
    """
    if "&" in text:
        text = html.unescape(html.unescape(text))
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_INVISIBLE))
    return " ".join(text.split())


def draw(captions: Sequence[str], count: int, rng: np.random.Generator, weights: Sequence[float] = ()) -> list[str]:
    """`count` of the captions: none twice while there are enough, else every one before any comes again.

    Args:
        weights: chance of each to be drawn first, up to a common factor; empty = equal.
    """
    if len(captions) == 1:
        return [captions[0]] * count
    chances = np.array(weights) / sum(weights) if weights else None
    order: list[int] = []
    while len(order) < count:
        if chances is None:
            order += rng.permutation(len(captions)).tolist()
        else:
            order += rng.choice(len(captions), len(captions), replace=False, p=chances).tolist()
    return [captions[index] for index in order[:count]]


def fill(text: str, templates: Mapping[str, float], rng: np.random.Generator) -> str:
    """The text in one of the templates, each with its own probability; the bare text with what is left of 1."""
    if templates:
        chance = rng.random()
        for template, probability in templates.items():
            chance -= probability
            if chance < 0:
                return template.replace("{}", text)
    return text
