"""Where a pretrained text model is; light to import, for who only needs its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path


def pretrained_folder(source: str) -> str:
    """The Transformers folder inside a SentenceTransformer folder; anything else (a hub name) as it is."""
    modules = Path(source) / "modules.json"
    if modules.is_file():
        return str(Path(source) / json.loads(modules.read_text("utf-8"))[0]["path"])
    return source
