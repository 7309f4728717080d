"""Small tables, and what is read of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ito_ray.data.prepare.delimited import Dialect
from ito_ray.data.prepare.listing import Listed
from ito_ray.data.prepare.tables import Columns, list_table

ROWS = [
    ("a.png", "plain"),
    ("b.png", 'with "quotes", a comma; a semicolon'),
    ("c.png", "zwei Häuser – 家"),
    ("d.png", "two\nlines"),
    ("e.png", '"all of it in quotes"'),
    ("f.png", "  spaces, around  "),
]


def listed(path: Path, **dialect: Any) -> list[Listed]:
    return list_table(path, None, Columns(), Dialect(**dialect))[0]


def pairs(path: Path, **dialect: Any) -> list[tuple[str, str]]:
    """Name and caption of each row, none of them bad."""
    rows = listed(path, **dialect)
    assert not [row for row in rows if row.bad], rows
    return [(Path(row.image).name, caption) for row in rows for caption in row.captions]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path
