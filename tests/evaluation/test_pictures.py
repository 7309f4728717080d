"""Gallery, map and page: what they show, not how they look (they were looked at)."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ito_ray.evaluation.embed import PairEmbeddings, embed_pairs
from ito_ray.evaluation.evaluate import geometry_measures, retrieval_measures
from ito_ray.evaluation.gallery import Choice, make_queries
from ito_ray.evaluation.page import Gallery, Map, compare, gallery_html
from ito_ray.evaluation.pictures import gallery_png, map_png
from ito_ray.evaluation.report import Grid, Report, Section
from ito_ray.evaluation.retrieval import retrieval
from ito_ray.evaluation.show import files_of, write_files
from tests.evaluation.shapes import COLOURS, SHAPES, ShapeEncoder, draw


def shape_pairs(count: int | None = None) -> PairEmbeddings:
    from ito_ray.data.heldout import Pair

    names = [(colour, shape) for colour in COLOURS for shape in SHAPES][:count]
    return embed_pairs(
        ShapeEncoder(),
        (
            Pair(key=f"{c}-{s}", image=draw(c, s, seed=i), captions=(f"a {c} {s}", f"<b>{s}</b> & {c}"), meta={})
            for i, (c, s) in enumerate(names)
        ),
        16,
        thumbnail=48,
    )


@pytest.fixture(scope="module")
def pairs() -> PairEmbeddings:
    return shape_pairs()


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_queries_equal_argsort(pairs: PairEmbeddings, chunk: int) -> None:
    queries = make_queries(pairs, count=10, top=5, chunk=chunk)
    ranks = retrieval(pairs.image, pairs.text, pairs.owner).text_to_image.rank
    for query in queries:
        m = pairs.captions.index(query.text)
        order = np.argsort(-(pairs.image @ pairs.text[m]))[:5]
        assert [hit.thumbnail for hit in query.hits] == [pairs.thumbnails[i] for i in order]
        assert [hit.right for hit in query.hits] == [i == pairs.owner[m] for i in order]
        assert [hit.name for hit in query.hits] == [pairs.captions[2 * i] for i in order]
        assert query.rank == ranks[m]
    assert len({query.text for query in queries}) == 10


@pytest.mark.parametrize("chunk", [1, 4, 1024])
def test_a_tied_right_image_comes_last(chunk: int) -> None:
    point = np.tile(np.array([[0.6, 0.8]], dtype=np.float32), (12, 1))
    thumbnails = tuple(bytes([i]) for i in range(12))
    names = tuple(str(i) for i in range(12))
    tied = PairEmbeddings(point, point, np.arange(12), names, names, thumbnails)
    (query,) = make_queries(tied, count=1, top=12, chunk=chunk)
    assert [hit.right for hit in query.hits] == [False] * 11 + [True]
    assert query.rank == 12


def test_queries_need_thumbnails(pairs: PairEmbeddings) -> None:
    bare = PairEmbeddings(pairs.image, pairs.text, pairs.owner, pairs.keys, pairs.captions)
    with pytest.raises(ValueError, match="thumbnail > 0"):
        make_queries(bare)


def test_png_files(pairs: PairEmbeddings, tmp_path: Path) -> None:
    gallery = Image.open(gallery_png(make_queries(pairs, count=3), tmp_path / "gallery.png"))
    drawn = Image.open(map_png(pairs, tmp_path / "map.png"))
    for image in (gallery, drawn):
        assert image.format == "PNG"
        assert image.width > 700
        assert np.asarray(image.convert("L")).std() > 5
    right = np.array([0x0A, 0x7D, 0x38])
    frame = (np.asarray(gallery.convert("RGB")) == right).all(axis=2)
    assert frame.sum() > 500


def test_map_of_two_pairs_is_refused(pairs: PairEmbeddings, tmp_path: Path) -> None:
    two = PairEmbeddings(pairs.image[:2], pairs.text[:2], np.arange(2), ("a", "b"), ("a", "b"))
    with pytest.raises(ValueError, match="at least 3"):
        map_png(two, tmp_path / "map.png")


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in {"img", "meta", "link", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_self_contained_and_has_alternative_texts(pairs: PairEmbeddings, tmp_path: Path) -> None:
    queries = make_queries(pairs, count=12)
    report = Report("shapes", tuple(retrieval_measures(pairs)), {"image_truncated": 3}, pairs)
    path = gallery_html(
        tmp_path / "index.html",
        title="Shapes & <colours>",
        report=report,
        galleries=[Gallery("Drawn", "note", queries)],
        maps=[Map(map_png(pairs, tmp_path / "map.png"), "Scatter plot.", "Dots.")],
        usage='model = load("a<b")',
    )
    html = path.read_text("utf-8")
    page = Page()
    page.feed(html)
    assert page.open == []
    assert len(page.images) == 12 * 5 + 1
    assert all(image["alt"] and (image["src"] or "").startswith("data:image/webp;base64,") for image in page.images)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "<h1>Shapes &amp; &lt;colours&gt;</h1>" in html
    assert "a&lt;b" in html
    assert html.count("✓ right") == sum(hit.right for query in queries for hit in query.hits) > 0
    for measure in report.headline:
        whole = html.replace("\u00a0%", " %")
        assert all(cell in whole for cell in measure.cells())
    assert "\u00a0%" in html, "a narrow page does not part a number from its %"
    assert "image truncated: 3." in html


def test_page_without_pictures(pairs: PairEmbeddings, tmp_path: Path) -> None:
    report = Report("shapes", tuple(retrieval_measures(pairs)))
    html = gallery_html(tmp_path / "index.html", title="Numbers", report=report).read_text("utf-8")
    assert "<img" not in html
    assert html.count("<h2>") == 1


def test_best_and_worst_are_the_ends_of_all_margins(pairs: PairEmbeddings) -> None:
    first = np.unique(pairs.owner, return_index=True)[1]
    score = pairs.text[first].astype(np.float64) @ pairs.image.T
    own = np.diag(score).copy()
    np.fill_diagonal(score, -np.inf)
    margin = own - score.max(axis=1)
    ends: tuple[tuple[Choice, Any], ...] = (("best", np.argsort(-margin)), ("worst", np.argsort(margin)))
    for choice, order in ends:
        for chunk in (7, 1024):
            queries = make_queries(pairs, count=4, choice=choice, chunk=chunk)
            assert [query.text for query in queries] == [pairs.captions[first[i]] for i in order[:4]]
    assert make_queries(pairs, count=1, choice="worst")[0].rank > make_queries(pairs, count=1, choice="best")[0].rank


@pytest.fixture(scope="module")
def few() -> PairEmbeddings:
    return shape_pairs(5)


def test_a_full_report_has_everything_and_says_it_without_pictures(few: PairEmbeddings, tmp_path: Path) -> None:
    pairs = few
    measures = (*retrieval_measures(pairs), *geometry_measures(pairs))
    rng = np.random.default_rng(0)
    noisy = pairs.text + rng.normal(0, 0.3, pairs.text.shape).astype(np.float32)
    worse = dataclasses.replace(pairs, text=noisy / np.linalg.norm(noisy, axis=1, keepdims=True))
    other = Report("peer <b>", tuple(retrieval_measures(worse)), {}, worse)
    grid = Grid(("Class", "Top 1"), (("cat & dog", "10 %"),), "Hardest")
    section = Section("Confusions", "note", (), (grid,))
    curves = {"train/loss": [(1, 2.0), (5, 1.0)], "eval/geometry/modality_gap": [(1, 0.5), (5, 0.25)], "x": [(1, 1.0)]}
    page = write_files(
        Report("shapes", measures, {}, pairs, (), (section,)),
        tmp_path,
        title="t",
        usage="",
        dataset="",
        full=True,
        baselines=[other],
        curves=curves,
    )
    html = page.read_text("utf-8")
    parser = Page()
    parser.feed(html)
    assert parser.open == []
    assert all(image["alt"] and (image["src"] or "").startswith("data:image/webp") for image in parser.images)
    for text in ("Against peer &lt;b&gt;", "cat &amp; dog", "What it gets most wrong", "t-SNE", "0.25", "train/loss"):
        assert text in html, text
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {
        "gallery.png",
        "gallery_best.png",
        "gallery_worst.png",
        "map.png",
        "map_tsne.png",
        "curves_training.png",
        "curves_geometry.png",
    }
    assert {cell for row in compare(Report("a", measures, {}, pairs), other).rows for cell in row[3:]} - {"–"}


def test_an_earlier_evaluation_goes_and_other_files_stay(few: PairEmbeddings, tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(b"kept")
    report = Report("shapes", tuple(retrieval_measures(few)), {}, few)
    write_files(report, tmp_path, title="t", usage="", dataset="")
    assert (tmp_path / "map.png").is_file()
    write_files(dataclasses.replace(report, pairs=None), tmp_path, title="t", usage="", dataset="")
    assert {path.name for path in tmp_path.iterdir()} == {"mine.png", "index.html", "metrics.json"}
    assert {path.name for path in files_of(tmp_path)} == {"index.html", "metrics.json"}
