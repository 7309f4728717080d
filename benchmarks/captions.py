"""Captions as long as CC3M's, from a seed: 10.3 ± 4.5 words, at least 3 (Sharma et al., ACL 2018, table 2).

Only the lengths matter to cost. The words are those of ImageNet's class names and CLIP's prompts, so that byte-pair
encoding splits them as it splits real captions.
"""

from __future__ import annotations

import random

import open_clip
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

MEAN_WORDS, STD_WORDS, LEAST_WORDS = 10.3, 4.5, 3


def captions(count: int, seed: int) -> list[str]:
    """`count` captions; the same for the same seed."""
    texts = [*IMAGENET_CLASSNAMES, *(template("") for template in OPENAI_IMAGENET_TEMPLATES)]
    words = sorted({word for text in texts for word in text.lower().split()})
    draw = random.Random(seed)
    lengths = (max(LEAST_WORDS, round(draw.gauss(MEAN_WORDS, STD_WORDS))) for _ in range(count))
    return [" ".join(draw.choices(words, k=length)) for length in lengths]


def padded_ids(texts: list[str], context: int) -> tuple[Tensor, Tensor]:
    """OpenCLIP's ids, int64 (B,context), filled up with 0, and the valid tokens of each, int64 (B,)."""
    ids_BT: Tensor = open_clip.tokenizer.SimpleTokenizer(context_length=context)(texts)
    return ids_BT, ids_BT.argmax(dim=1) + 1
