"""The page says what the book holds: numbers against naive references, words around them untouched."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, stdev

import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from ito_ray.errors import DataError
from tests.tune.books import finished_sweep
from tune.ablation import main
from tune.arms import BASE, PAPER, SPENDINGS, TWICE, VARIANTS
from tune.book import Book, Job, Spent
from tune.budget import Budget
from tune.judging import paired_difference
from tune.results import Results, note_name, read_results
from tune.results_page import marks, write_page
from tune.studies import study
from tune.study_run import OBJECTIVE, settings, steps_ahead
from tune.table import SweepTable

SEEDS = (0, 1, 2)
R1 = "heldout/r1_image_to_text"
TOP1 = "zero_shot/top1"


def _score(arm: str, seed: int) -> float:
    """A seed lifts all arms alike, so differences vary less than scores."""
    place = [*PAPER.labels, *VARIANTS.labels, *SPENDINGS.labels].index(arm)
    return 0.2 + 0.01 * place + 0.05 * seed + 0.001 * ((seed * 7 + place * 3) % 5)


def _fill(path: Path, name: str = "icons_quick") -> Path:
    """A study; `ito_6` was not measured with the last seed."""
    chosen = study(name, Path("data"))
    full = chosen.base.train.steps
    with Book(path / "book.jsonl") as book:
        book.open_session(settings(chosen))
        for seed in SEEDS:
            for point, (arm, changes) in enumerate(chosen.arms.items(), start=1):
                key = book.started(Job(point, seed, "study", changes)).job.key
                for part, share in ((0.5, 0.6), (0.75, 1.0), (1.0, 0.9)):  # best at three quarters
                    step = round(part * changes.get("train.steps", full))
                    score = share * _score(arm, seed)
                    values = {R1: score, "heldout/r1_text_to_image": score, "geometry/modality_gap": part}
                    values |= {"step_cpu_seconds": 0.5 if "clip" in arm else 1.25}
                    book.evaluated(key, step, values, "", "finished" if part == 1 else "open")
                if (arm, seed) == ("ito_6", 2):
                    continue
                test = dict.fromkeys(chosen.headline, _score(arm, seed)) | {"geometry/modality_gap": 0.7}
                book.note(note_name(key), {**test, "heldout/pairs": 1000.0, "zero_shot/classes": 331.0})
    return path


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return read_results(_fill(tmp_path / "icons_quick"))


def test_paired_differences_are_students_t_over_the_seeds_that_both_have(results: Results) -> None:
    one, other = [_score("ito_2", seed) for seed in SEEDS], [_score("align", seed) for seed in SEEDS]
    found = results.difference("ito_2", "align", TOP1)
    assert found is not None and found.interval is not None
    assert found.value == pytest.approx(fmean(one) - fmean(other))
    assert found.interval == pytest.approx(stats.ttest_rel(one, other).confidence_interval(0.95))
    gaps = [a - b for a, b in zip(one, other, strict=True)]
    half = 4.302653 * stdev(gaps) / math.sqrt(3)  # t of 2 degrees of freedom, from a table
    assert found.interval == pytest.approx((fmean(gaps) - half, fmean(gaps) + half), rel=1e-6)
    two_seeds = results.difference("ito_6", "align", TOP1)
    assert two_seeds is not None and two_seeds.value == pytest.approx(
        fmean(_score("ito_6", seed) - _score("align", seed) for seed in (0, 1))
    )
    assert paired_difference({0: 0.5, 3: 0.1}, {0: 0.2, 1: 0.9}).interval is None
    assert results.difference("clip", "align", "zero_shot/none") is None


def test_courses_efforts_and_what_is_missing(results: Results) -> None:
    (course, *_) = results.courses("align")
    assert course.at == pytest.approx(0.75) and course.fall == pytest.approx(0.1 * _score("align", 0))
    clip, twice, ito = (results.effort(arm) for arm in ("clip", TWICE, "ito_2"))
    assert twice.images == ito.images == 2 * clip.images and twice.captions == 2 * ito.captions
    assert (results.step_cpu("clip"), results.step_cpu("ito_2")) == (0.5, 1.25)
    assert results.missing == ("ito_6, seed 2: finished",)


def test_the_page_gets_tables_and_figures_and_keeps_its_words(tmp_path: Path) -> None:
    source, page = _fill(tmp_path / "icons_quick"), tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    start, end = marks("icons_quick")
    page.write_text(f"# Results\n\nWords before.\n\n{start}\nold numbers\n{end}\n\nWords after.\n")
    arguments = ["report", str(source), "--page", str(page), "--images", str(tmp_path / "docs" / "images")]
    assert main(arguments) == 0
    first = page.read_text()
    assert first.startswith(f"# Results\n\nWords before.\n\n{start}\n") and first.endswith(f"\n{end}\n\nWords after.\n")
    assert "old numbers" not in first
    scores = [100 * _score("ito_2", seed) for seed in SEEDS]
    assert f"| ITO, λ = 2 | 3 | {fmean(scores):.1f} ± {stdev(scores):.1f} |" in first
    assert "| chance |  | 0.3 | 1.5 | 0.1 | 0.1 |" in first
    assert "Not there: ito_6, seed 2: finished." in first
    assert f"| ITO, λ = 2 | 160 | 40,960 | 20,480 | 1.250 | {1.25 * 160 / 60:.1f} | 2.50 |" in first
    assert "**" in first, "some differences are larger than the seeds explain"
    for name in ("curves", "differences", "lambda"):
        assert f"](images/icons_quick-{name}.png)" in first
        with Image.open(tmp_path / "docs" / "images" / f"icons_quick-{name}.png") as picture:
            assert picture.width > 600 and len(set(picture.convert("L").getdata())) > 20
    assert main(arguments) == 0 and page.read_text() == first, "made again it is the same"


def test_one_seed_of_two_arms_makes_a_page(tmp_path: Path) -> None:
    chosen = study("emoji", Path("data"))
    with Book(tmp_path / "book.jsonl") as book:
        book.open_session(settings(chosen))
        for point in (1, 4):
            key = book.started(Job(point, 0, "study", chosen.arms[[*PAPER.labels][point - 1]])).job.key
            book.evaluated(key, 800, {R1: 0.1, "heldout/r1_text_to_image": 0.2}, "", "finished")
            book.note(note_name(key), dict.fromkeys(chosen.headline, 0.1))
    page = tmp_path / "page.md"
    page.write_text("\n".join(marks("emoji")))
    write_page(tmp_path / "book.jsonl", page, tmp_path / "images")
    text = page.read_text()
    assert "+0.0 (one seed)" in text and "| alignment only, λ = 0 | 1 | 10.0 | 10.0 | 10.0 | 10.0 |" in text


def test_refusals(tmp_path: Path) -> None:
    source, page = _fill(tmp_path / "icons_quick"), tmp_path / "results.md"
    with pytest.raises(DataError, match="does not exist: make it, with the lines <!-- study icons_quick -->"):
        write_page(source, page, tmp_path)
    page.write_text("<!-- end of icons_quick -->\n<!-- study icons_quick -->")
    with pytest.raises(DataError, match="has no place for icons_quick"):
        write_page(source, page, tmp_path)
    with finished_sweep(tmp_path / "search" / "book.jsonl"), pytest.raises(DataError, match="the book of a search"):
        read_results(tmp_path / "search")
    with Book(tmp_path / "new" / "book.jsonl") as book:
        book.open_session(settings(study("emoji", Path("data"))))
        with pytest.raises(DataError, match="no run was measured"):
            read_results(tmp_path / "new")


def test_variants_are_compared_with_the_recipe(tmp_path: Path) -> None:
    found = read_results(_fill(tmp_path / "icons_variants", "icons_variants"))
    assert found.arms == tuple(VARIANTS.labels) and found.references == (BASE,)
    page = tmp_path / "page.md"
    page.write_text("\n".join(marks("icons_variants")), encoding="utf-8")
    write_page(tmp_path / "icons_variants", page, tmp_path)
    text = page.read_text("utf-8")
    assert text.count("Less ITO, λ = 2, seed by seed") == 1 and "Less CLIP" not in text
    assert all(f"| {label} | 3 |" in text for label in VARIANTS.labels.values())
    assert "| × ITO, λ = 2 |" in text and "lambda.png" not in text


def test_equal_compute_is_compared_with_each_way_to_spend_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n".join(marks("emoji_spendings")), encoding="utf-8")
    write_page(_fill(tmp_path / "emoji_spendings", "emoji_spendings"), page, tmp_path)
    text = page.read_text("utf-8")
    assert [text.count(f"Less {SPENDINGS.labels[arm]}, seed by seed") for arm in SPENDINGS.references] == [1, 1, 1]
    assert "| CLIP, twice the batch | 240 | 61,440 | 61,440 |" in text, "what each encodes is in the table of costs"
    assert "lambda.png" not in text, "its arms differ in more than λ"


def test_a_study_says_how_long_it_will_take_yet(tmp_path: Path) -> None:
    jobs = [Job(1, seed, "study", {}) for seed in range(4)] + [Job(2, 0, "study", {"train.steps": 1600})]
    with Book(tmp_path / "book.jsonl") as book:
        book.open_session(settings(study("clipart", tmp_path)))

        def ahead() -> int:
            return steps_ahead(book, jobs, 800)

        def line() -> str:
            return SweepTable(Console(), book, OBJECTIVE, Budget(), "study", ahead).line()

        assert ahead() == 4 * 800 + 1600
        assert "left" not in line(), "nothing is known before the first steps"
        for job in jobs[:3]:
            book.started(job)
        scores = dict.fromkeys(OBJECTIVE.names, 0.1)
        book.evaluated(jobs[0].key, 800, scores, "", "finished")
        book.evaluated(jobs[1].key, 300, scores, "", "open")
        book.ended(jobs[2].key, "failed", "no such tower")
        book.spend(Spent(1100, 0, 330.0, 0.0))
        assert ahead() == 500 + 800 + 1600
        assert "about 0:14:30 left" in line()
        for job in (jobs[3], jobs[4]):
            book.started(job)
        for job in (jobs[1], jobs[3], jobs[4]):
            book.ended(job.key, "finished", "")
        assert ahead() == 0 and "left" not in line()
