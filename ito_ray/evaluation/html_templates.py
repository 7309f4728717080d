"""Templates of pages: what they show is escaped, and free of secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ito_ray.redact import redact


def page_templates(folder: Path) -> Environment:
    """The templates in `folder`."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_public,
    )


def _public(value: Any) -> Any:
    return redact(value) if type(value) is str and not value.startswith("data:") else value
