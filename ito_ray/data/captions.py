"""Captions: what can be one, drawing, templates.

Every text from every source passes `fault_of` before `preprocess.clean_text` cleans it: what a tokenizer, a file or a
page cannot take is found here. What a tokenizer normalises itself (case, accents) is left to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ito_ray.data.preprocess import clean_text

MOST_CHARACTERS = 32_768
"""A longer text is no caption: some page, or a file in its place. Tokenizing 20 MB takes half a minute."""


def fault_of(value: object) -> tuple[str, str] | None:
    """Why the value cannot be a caption: (reason, detail); None when it can.

    Reasons: caption_not_text, caption_not_utf8 (bytes that are not, or half of a surrogate pair) and caption_too_long.
    """
    if not isinstance(value, str | bytes):
        return "caption_not_text", f"{type(value).__name__}, not text"
    if len(value) > MOST_CHARACTERS * (4 if isinstance(value, bytes) else 1):
        unit = "bytes" if isinstance(value, bytes) else "characters"
        return "caption_too_long", f"{len(value):,} {unit}, at most {MOST_CHARACTERS:,} characters are taken"
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else value
        if not text.isascii():
            text.encode()
    except UnicodeDecodeError as error:
        return "caption_not_utf8", str(error)[:200]
    except UnicodeEncodeError as error:
        at = f"at character {error.start}"
        if "\udc80" <= error.object[error.start] <= "\udcff":  # how a reader of text passes on a byte that is none
            return (
                "caption_not_utf8",
                f"a byte that is not UTF-8 {at}: read a table in another encoding with --encoding",
            )
        return "caption_not_utf8", f"half of a surrogate pair {at}"
    return fault_of(text) if isinstance(value, bytes) else None


def cleaned(value: object) -> tuple[str, tuple[str, str] | None]:
    """The caption as it is used, and why it cannot be, as from `fault_of`; "" is no fault."""
    if fault := fault_of(value):
        return "", fault
    text = clean_text(value.decode("utf-8-sig") if isinstance(value, bytes) else str(value))
    return text, fault_of(text)  # NFKC makes eighteen characters of some


def is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: json and file names may give halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def caption_numbers(captions: Sequence[str]) -> NDArray[np.int64]:
    """(M,) the same number for captions that are equal once cleaned, but for letter case; counted from 0."""
    known: dict[str, int] = {}
    numbers = (known.setdefault(clean_text(caption).casefold(), len(known)) for caption in captions)
    return np.fromiter(numbers, np.int64, len(captions))
