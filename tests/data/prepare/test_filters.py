"""Filters keep what they should, and a user's expression can reach nothing but the sample."""

from __future__ import annotations

from typing import Any

import pytest

from ito_ray.data.prepare.filters import Filters, Where
from ito_ray.data.rows import BadSample
from ito_ray.errors import ConfigError

FIELDS = {"caption": "A red Logo", "captions": 2, "width": 300, "height": 200, "score": 0.5, "tags": ["a", "b"]}


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("width >= 256", True),
        ("width / height > 1.6", False),
        ('"logo" not in lower(caption)', False),
        ("words(caption) == 3 and len(caption) < 20", True),
        ("score > 0.9 or captions == 2", True),
        ("'a' in tags", True),
        ("100 < width < 400 and not height == 100", True),
        ("min(width, height) if score else 0", True),
    ],
)
def test_expressions(expression: str, holds: bool) -> None:
    if holds:
        Where(expression).check(FIELDS)
        return
    with pytest.raises(BadSample) as caught:
        Where(expression).check(FIELDS)
    assert caught.value.reason == "where_false"


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('x')",
        "caption.__class__",
        "caption.format(1)",
        "open('/etc/passwd')",
        "rand() > 0",
        "[x for x in tags]",
        "lambda: 1",
        "(width := 3)",
        "width = 3",
        "width >",
        "len.__self__",
        "f'{caption}'.join(tags)",
        "",
        "1; 2",
    ],
)
def test_what_is_no_expression_is_refused_at_once(expression: str) -> None:
    with pytest.raises(ConfigError, match="--where"):
        Where(expression)


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("rating > 3", "the fields are caption, captions"),
        ("caption > 3", "not supported"),
        ("9 ** 9 ** 9 > 1", "want to evaluate"),
    ],
)
def test_what_cannot_be_told_is_a_reason_of_its_own(expression: str, part: str) -> None:
    with pytest.raises(BadSample, match=part) as caught:
        Where(expression).check(FIELDS)
    assert caught.value.reason == "where_failed"


def test_sizes() -> None:
    filters = Filters(min_side=100, max_aspect=2)
    filters.check_size(100, 200)
    for size, reason in (((99, 150), "image_too_small"), ((201, 100), "image_too_long")):
        with pytest.raises(BadSample) as caught:
            filters.check_size(*size)
        assert caught.value.reason == reason
    Filters().check_size(1, 5000)


def test_captions_are_kept_one_by_one() -> None:
    filters = Filters(caption_chars=(3, 10), caption_words=(2, 0))
    assert filters.fitting(("a b", "ab", "one two", "much too long a text", "oneword")) == ("a b", "one two")
    with pytest.raises(BadSample) as caught:
        filters.fitting(("ab",))
    assert caught.value.reason == "caption_length"


@pytest.mark.parametrize(
    "values",
    [{"min_side": -1}, {"max_aspect": 0.5}, {"max_aspect": float("nan")}, {"caption_chars": (5, 2)}, {"where": "1 +"}],
)
def test_limits_that_make_no_sense(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--"):
        Filters(**values)
