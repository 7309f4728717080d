"""The page that stands alone: everything inside, every text escaped."""

from __future__ import annotations

import re
from pathlib import Path

from ito_ray.search.page import Page, write_page
from tests.embeddings.makers import HashEncoder
from tests.search.makers import NASTY, make_index


def test_pictures_are_inside_and_texts_are_escaped(tmp_path: Path) -> None:
    index = make_index(tmp_path)
    hits = index.search(HashEncoder().encode_texts(["x"])[0], 30)
    html = write_page(tmp_path / "deep" / "page.html", Page(f"“{NASTY}”", "30 of 30", hits)).read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 2, "the query and the caption of k007"
    sources = re.findall(r'(?:src|href|action)="([^"]*)"', html)
    assert sources.pop(0) == "data:,", "no icon is asked for"
    assert len(sources) == 30 and all(source.startswith("data:image/webp;base64,") for source in sources)
    assert all(f"<code>k{n:03d}</code>" in html for n in range(30))
    assert html.count("<code>part-0.tar</code>") == 15


def test_rows_without_pictures_say_so(tmp_path: Path) -> None:
    index = make_index(tmp_path, thumbnail=0)
    hits = index.search(HashEncoder().encode_texts(["x"])[0], 2)
    html = write_page(tmp_path / "page.html", Page("x", "", hits)).read_text()
    assert html.count("no picture kept") == 2 and "<img" not in html
