"""Which samples are kept: sizes, caption lengths, and an expression of the user's own."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simpleeval import DEFAULT_OPERATORS, SimpleEval

from ito_ray.data.rows import BadSample
from ito_ray.errors import ConfigError

FIELDS = ("key", "caption", "captions", "width", "height", "format", "bytes")
"""What `where` knows of every sample; the fields of its meta data come on top."""
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": len,
    "lower": lambda text: str(text).lower(),
    "words": lambda text: len(str(text).split()),
    "min": min,
    "max": max,
    "abs": abs,
}


@dataclass(frozen=True)
class Filters:
    """0 = no limit."""

    min_side: int = 0
    max_aspect: float = 0.0
    caption_chars: tuple[int, int] = (0, 0)
    caption_words: tuple[int, int] = (0, 0)
    where: str = ""

    def __post_init__(self) -> None:
        if self.min_side < 0:
            raise ConfigError(f"--min-side is {self.min_side}: give pixels, or 0 for no limit.")
        if self.max_aspect and not (math.isfinite(self.max_aspect) and self.max_aspect >= 1):
            raise ConfigError(f"--max-aspect is {self.max_aspect}: give long side / short side, at least 1, or 0.")
        for name, (least, most) in (("chars", self.caption_chars), ("words", self.caption_words)):
            if least < 0 or (most and most < least):
                raise ConfigError(f"--caption-{name} is {least} {most}: give the least and the most, 0 for no limit.")
        if self.where:
            Where(self.where)

    def check_size(self, width: int, height: int) -> None:
        """Raises BadSample: image_too_small, image_too_long."""
        if min(width, height) < self.min_side:
            raise BadSample("image_too_small", f"{width}×{height}, the short side must have {self.min_side}")
        if self.max_aspect and max(width, height) > self.max_aspect * min(width, height):
            raise BadSample("image_too_long", f"{width}×{height}, sides may be as 1 to {self.max_aspect:g}")

    def fitting(self, captions: Sequence[str]) -> tuple[str, ...]:
        """The captions of allowed length; raises BadSample caption_length when none is."""
        kept = tuple(
            text
            for text in captions
            if _within(len(text), self.caption_chars) and _within(len(text.split()), self.caption_words)
        )
        if not kept:
            raise BadSample("caption_length", f"none of {len(captions)}, e.g. {captions[0][:80]!r}")
        return kept


class Where:
    """An expression over a sample's fields, e.g. `width >= 256 and "logo" not in lower(caption)`.

    Evaluated by simpleeval, never by Python: numbers, texts, comparisons, arithmetic and the functions of `FUNCTIONS`;
    no attributes, so nothing can be reached that is not named here.

    Raises:
        ConfigError: it is no such expression.
    """

    def __init__(self, expression: str) -> None:
        self.expression = expression
        self._evaluator = SimpleEval(operators=DEFAULT_OPERATORS, functions=FUNCTIONS)
        for node in (ast.Attribute, ast.Assign, ast.AugAssign, ast.Import):
            self._evaluator.nodes.pop(node, None)
        try:
            self._parsed = ast.parse(expression.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigError(f"--where {expression!r} is no expression: {error}. {_allowed()}") from error
        self._refuse_unknown()

    def _refuse_unknown(self) -> None:
        for node in ast.walk(self._parsed):
            known = type(node) in self._evaluator.nodes or isinstance(node, ast.expr_context | ast.operator)
            if not known and not isinstance(node, ast.unaryop | ast.boolop | ast.cmpop | ast.keyword):
                raise ConfigError(f"--where {self.expression!r} uses {type(node).__name__}. {_allowed()}")
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else "a call of something else"
                if name not in FUNCTIONS:
                    raise ConfigError(f"--where {self.expression!r} calls {name}. {_allowed()}")

    def check(self, fields: Mapping[str, Any]) -> None:
        """Raises BadSample: where_false, or where_failed when it cannot be told for these fields."""
        self._evaluator.names = dict(fields)
        try:
            holds = bool(self._evaluator.eval(self.expression, previously_parsed=self._parsed))
        except Exception as error:  # whatever an expression can do to values of unforeseen types
            known = f"; the fields are {', '.join(fields)}" if "not defined" in str(error) else ""
            raise BadSample("where_failed", f"{error}{known}"[:300]) from error
        if not holds:
            raise BadSample("where_false", self.expression[:200])


def _allowed() -> str:
    return (
        f"Allowed are the fields {', '.join(FIELDS)} and those of the meta data, numbers, texts, comparisons, and, or, "
        f"not, in, arithmetic, and {', '.join(FUNCTIONS)}(…)."
    )


def _within(value: int, limits: tuple[int, int]) -> bool:
    least, most = limits
    return value >= least and (not most or value <= most)
