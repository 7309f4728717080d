"""A contact sheet shows every pair, and captions cannot become markup."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ito_ray.data.survey import Pair
from ito_ray.evaluation.contact import contact_html, contact_png
from tests.data.makers import encoded


def _pair(number: int, *captions: str) -> Pair:
    colour = (255, 0, 10 * number)
    return Pair(f"k{number}", encoded(Image.new("RGB", (40, 30), colour), "WEBP", lossless=True), captions)


def test_every_picture_is_on_the_sheet(tmp_path: Path) -> None:
    pairs = [_pair(number, "$a^b$ caption " * 20, "another") for number in range(8)]
    image = np.asarray(Image.open(contact_png(pairs, tmp_path / "c.png", title="t " * 200)).convert("RGB"))
    for number in range(8):
        assert (np.abs(image.astype(int) - (255, 0, 10 * number)).max(axis=2) <= 4).sum() > 1000


def test_captions_are_escaped(tmp_path: Path) -> None:
    page = contact_html([_pair(1, '<script>alert("x")</script>', "b & c")], tmp_path / "c.html", title="<b>")
    text = page.read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;" in text
    assert "b &amp; c" in text
    assert text.count("data:image/webp;base64,") == 1
