"""The page of results: one template for the file that stands alone and for the server. No script, no font."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment

from ito_ray.evaluation.html_templates import page_templates
from ito_ray.search.index import Entry, Hit, Kind

LONGEST_QUERY = 300
"""Characters; text towers take some 77 tokens."""


@dataclass(frozen=True)
class Page:
    """What a page shows. Every text is escaped."""

    heading: str
    note: str
    """What was searched, and how fast."""
    hits: Sequence[Hit] = ()
    kind: Kind = "image"
    text: str = ""
    """In the search box."""
    picture: str = ""
    """Address of the picture that was looked up."""
    caption: str = ""
    """Beside that picture."""
    error: str = ""
    examples: Sequence[str] = ()
    live: bool = False
    """With a search box and links: behind a server."""
    longest: int = LONGEST_QUERY


def render(page: Page, picture: Callable[[Entry], str]) -> str:
    """HTML; `picture` gives the address of an entry's thumbnail."""
    return _environment().get_template("page.html.jinja").render(page=page, picture=picture)


def write_page(path: Path, page: Page) -> Path:
    """Write the page as one file with its pictures inside; returns `path`. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(page, lambda entry: data_uri(entry.thumbnail)), encoding="utf-8")
    return path


def data_uri(webp: bytes) -> str:
    """The picture as an address that holds it."""
    return f"data:image/webp;base64,{base64.b64encode(webp).decode('ascii')}"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = page_templates(Path(__file__).parent)
    environment.filters["basename"] = lambda address: address.rpartition("/")[2]
    return environment
