"""JSON as every reader takes it: Python alone writes NaN and Infinity, which browsers, jq and databases refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """`json.dumps`, with null for numbers that are not finite.

    Args:
        options: of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        finite = json.loads(json.dumps(value, **options), parse_constant=lambda name: None)
        return json.dumps(finite, allow_nan=False, **options)


def number(value: float | None) -> float:
    """What `dumps` has made null was a number that is not finite."""
    return math.nan if value is None else value


def numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    """`number` of each."""
    return {name: number(value) for name, value in values.items()}
