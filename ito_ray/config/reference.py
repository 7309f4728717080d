"""The configuration reference: every field with type, default, allowed values and description, made from the schema.

python -m ito_ray.config.reference docs/configuration.md
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from ito_ray.config.gate import Gate
from ito_ray.config.schema import Config
from ito_ray.config.section import Section
from ito_ray.config.workers import Workers

HEAD = """# Configuration reference

<!-- Made by `make configuration` from ito_ray/config: do not edit. -->

Every field of a run. The defaults are those of the schema; a recipe (`--recipe`, `ito_ray/config/recipes.py`) changes
some, a YAML file (`--config mine.yaml`) is laid over the recipe, and the command line over that. `--print-config` shows
the result. On the command line `train.global_batch` is `--train.global-batch`; in YAML it is `global_batch` below
`train:`. A key that no section has is refused.
"""
GATE = """What a candidate must show to become champion. These are options of
`python -m pipelines.register promote`, as in `--gate.min-items`, and no part of a run's configuration."""
_NAMES: dict[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "path",
    Any: "any JSON value",
    Workers: "integer, or LEAST..MOST",
}


class Row(NamedTuple):
    """A field as the table shows it."""

    field: str
    kind: str
    default: str
    allowed: str
    description: str


def page() -> str:
    """The whole page, as Markdown."""
    parts = [HEAD]
    sections: list[tuple[str, type[Section], str]] = [*_sections(Config, ""), ("gate", Gate, GATE)]
    for title, section, text in sections:
        parts += [f"## {title or 'The run'}\n", f"{text}\n", *_table(list(rows(section, title))), ""]
    return "\n".join(parts)


def rows(section: type[Section], path: str) -> Iterator[Row]:
    """The fields of a section that are no sections themselves."""
    docs = descriptions(section)
    defaults = section().model_dump(mode="json")
    for name, field in section.model_fields.items():
        if not _is_section(field.annotation):
            yield Row(
                f"{path}.{name}".lstrip("."),
                _kind(field.annotation),
                "none" if defaults[name] is None else json.dumps(defaults[name], ensure_ascii=False),
                _allowed(field.annotation, field.metadata),
                docs.get(name, ""),
            )


def descriptions(section: type[Section]) -> dict[str, str]:
    """The docstring below each attribute, on one line."""
    (body,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for attribute, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(attribute, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(attribute.target)] = " ".join(str(text.value.value).split())
    return found


def _sections(section: type[Section], path: str) -> Iterator[tuple[str, type[Section], str]]:
    """Path, class and docstring of a section and of those inside it."""
    yield path, section, inspect.cleandoc(section.__doc__ or "")
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            yield from _sections(field.annotation, f"{path}.{name}".lstrip("."))


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _kind(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return "text"
    if origin in (Union, UnionType):
        return " or ".join("none" if one is NoneType else _kind(one) for one in arguments)
    if origin is tuple:
        return (
            f"list of {_kind(arguments[0])}"
            if arguments[-1] is Ellipsis
            else f"{len(arguments)} × {_kind(arguments[0])}"
        )
    if origin is dict:
        return f"map of {_kind(arguments[0])} to {_kind(arguments[1])}"
    return _NAMES[annotation]


def _allowed(annotation: Any, metadata: Sequence[Any]) -> str:
    """Values that a type and its bounds let through; empty where the type says all."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is Annotated:
        return _allowed(arguments[0], arguments[1:])
    if origin is tuple:
        return _each(_allowed(arguments[0], ()))
    if origin is dict:
        return _each(_allowed(arguments[1], ()))
    return ", ".join(_bounds(metadata))


def _each(allowed: str) -> str:
    return f"each {allowed}" if allowed else ""


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    for one in metadata:
        match one:
            case FieldInfo():
                yield from _bounds(one.metadata)
            case annotated_types.Gt():
                yield f"> {one.gt:g}"
            case annotated_types.Ge():
                yield f"≥ {one.ge:g}"
            case annotated_types.Lt():
                yield f"< {one.lt:g}"
            case annotated_types.Le():
                yield f"≤ {one.le:g}"


def _table(found: Sequence[Row]) -> list[str]:
    lines = ["| field | type | default | allowed | description |", "|---|---|---|---|---|"]
    for row in found:
        cells = (f"`{row.field}`", row.kind, f"`{row.default}`", row.allowed, row.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") or "–" for cell in cells) + " |")
    return lines


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), "utf-8")
