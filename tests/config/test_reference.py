"""The committed configuration reference is the schema's, and says of every field what it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from ito_ray.config.gate import Gate
from ito_ray.config.reference import Row, page, rows
from ito_ray.config.schema import Config, DataConfig, TrainConfig, ViewsConfig
from ito_ray.config.section import Section

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def _leaves(section: type[BaseModel], path: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _leaves(field.annotation, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def _row(section: type[Section], name: str) -> Row:
    (found,) = [row for row in rows(section, "") if row.field == name]
    return found


def test_the_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: make configuration"


def test_every_field_is_there_and_described() -> None:
    fields = [line for line in page().splitlines() if line.startswith("| `")]
    expected = [*_leaves(Config, ""), *(f"gate.{name}" for name in Gate.model_fields)]
    assert sorted(line.split("`")[1] for line in fields) == sorted(expected)
    assert [line for line in fields if line.endswith("| – |")] == []


@pytest.mark.parametrize(
    ("section", "name", "kind", "default", "allowed"),
    [
        (TrainConfig, "global_batch", "integer", "2048", "> 0"),
        (TrainConfig, "ema", "number", "0.0", "≥ 0, < 1"),
        (TrainConfig, "parallel", "text", '"ddp"', "`ddp`, `fsdp`"),
        (TrainConfig, "workers", "integer, or LEAST..MOST", "1", ""),
        (ViewsConfig, "jitter", "4 × number", "[0.4, 0.4, 0.4, 0.1]", "each ≥ 0"),
        (DataConfig, "weights", "map of text to number", "{}", "each > 0"),
        (Gate, "groups", "path or none", "none", ""),
    ],
)
def test_types_defaults_and_bounds(section: type[Section], name: str, kind: str, default: str, allowed: str) -> None:
    row = _row(section, name)
    assert (row.kind, row.default, row.allowed) == (kind, default, allowed)
    assert row.description
