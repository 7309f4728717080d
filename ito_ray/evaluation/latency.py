"""How long encoding takes beside another encoder: in turns, so that what else the machine does hits both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from PIL import Image

from ito_ray.evaluation.encoder import Encoder

WARM_UP = 2


@dataclass(frozen=True)
class Latency:
    """Median milliseconds per item of both, and the median of their ratios turn by turn."""

    candidate_ms: float
    champion_ms: float
    ratio: float
    """candidate / champion."""


def side_by_side(
    candidate: Encoder,
    champion: Encoder,
    *,
    images: Sequence[Image.Image],
    texts: Sequence[str],
    rounds: int,
) -> dict[str, Latency]:
    """Latency of encoding images and texts, whole calls with preprocessing and tokenisation.

    Args:
        candidate, champion: on the same device.
        images: RGB, encoded in one call; at least one.
        texts: encoded in one call; at least one.
        rounds: measured turns; who goes first alternates. Some more warm up.

    Returns:
        {"image": …, "text": …}.
    """
    return {
        "image": _turns(
            lambda: candidate.encode_images(images), lambda: champion.encode_images(images), len(images), rounds
        ),
        "text": _turns(lambda: candidate.encode_texts(texts), lambda: champion.encode_texts(texts), len(texts), rounds),
    }


def _turns(ours: Callable[[], object], theirs: Callable[[], object], items: int, rounds: int) -> Latency:
    seconds: list[tuple[float, float]] = []
    for turn in range(WARM_UP + rounds):
        if turn % 2:
            second, first = _seconds(theirs), _seconds(ours)
        else:
            first, second = _seconds(ours), _seconds(theirs)
        seconds.append((first, second))
    measured = seconds[WARM_UP:]
    scale = 1000 / items
    return Latency(
        candidate_ms=scale * median(one for one, _ in measured),
        champion_ms=scale * median(other for _, other in measured),
        ratio=median(one / other for one, other in measured),
    )


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
