"""Every link inside README, docs and templates leads to a file, and to a heading that is in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", ".github/**/*.md")
    for path in REPOSITORY.glob(pattern)
    if path.is_file()
)


def _prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "``", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def _links(text: str) -> Iterator[str]:
    """Targets of links and images that are not on the web."""
    for found in re.finditer(r"\]\(([^()\s]+)\)", _prose(text)):
        if not re.match(r"[a-z]+:", found[1]):
            yield found[1]


def _anchors(text: str) -> set[str]:
    """The headings' addresses as GitHub makes them: lower case, no punctuation, hyphens for spaces."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _broken(page: Path) -> list[str]:
    found = []
    for link in _links(page.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target.read_text("utf-8"))):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    assert _broken(page) == []


def test_broken_links_are_noticed(tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# What it costs, in `λ`\n\n```\n# no heading\n```\n")
    good = "[a](other.md) [b](other.md#what-it-costs-in-λ) [c](https://x.y/z) `[d](code.md)`\n"
    page.write_text(f"# Top\n{good}[e](#top) [f](gone.md) [g](other.md#no-heading) ![h](gone.png) [i](#gone)\n")
    assert _broken(page) == ["gone.md", "other.md#no-heading", "gone.png", "#gone"]


def test_every_page_of_the_docs_is_in_the_navigation() -> None:
    navigation = (REPOSITORY / "mkdocs.yml").read_text("utf-8")
    pages = {str(page.relative_to(REPOSITORY / "docs")) for page in PAGES if REPOSITORY / "docs" in page.parents}
    assert pages == set(re.findall(r"[\w/-]+\.md", navigation))
