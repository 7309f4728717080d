"""The report says in words and pictures what the book holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from ito_ray.errors import DataError
from tests.tune.books import EVERY, FULL, OBJECTIVE, fill, finished_sweep, settings
from tune.book import BASELINE, TEST, Book, Job, State, Turn
from tune.budget import Budget
from tune.report import advice, common_step, importance, main, write_report
from tune.table import SweepTable

LAMBDA = "method.fusion_weight"


def test_the_page_of_a_finished_sweep(tmp_path: Path) -> None:
    with finished_sweep(tmp_path / "book.jsonl") as book:
        scores = {"0": [{"heldout/r1": 0.41}, {"heldout/r1": 0.43}], "5": [{"heldout/r1": 0.51}, {"heldout/r1": 0.53}]}
        book.note(TEST, {"shards": ["test.tar"], "scores": scores})
        page = write_report(tmp_path / "report", book, name="tiny-ito_lambda").read_text("utf-8")
    assert "Point 5 is better than the recipe" in page
    assert "with --register" in page
    assert "0.4200" in page and "0.5200" in page and "test.tar" in page
    stopped = 6
    assert f"Stopping early saved {stopped * (FULL - EVERY)} of the {stopped * FULL} steps" in page
    for name in ("curves", "lambda", "parallel"):
        with Image.open(tmp_path / "report" / f"{name}.png") as picture:
            assert picture.width > 600 and len(set(picture.convert("L").getdata())) > 20
    assert page.count("<img ") == page.count(' alt="') and "http" not in page


def test_the_command_writes_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    finished_sweep(folder / "book.jsonl").__exit__(None, None, None)
    assert main(["--folder", str(folder)]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()
    assert main(["--folder", str(tmp_path)]) == 2
    assert "has no book.jsonl" in capsys.readouterr().err


def test_a_sweep_that_has_only_begun(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        book.open_session(settings())
        with pytest.raises(DataError, match="no trial was evaluated yet"):
            write_report(tmp_path / "report", book, name="new")
        fill(book, BASELINE, 2.0, last=EVERY)
        page = write_report(tmp_path / "report", book, name="new").read_text("utf-8")
    assert "No trial has finished yet" in page


def test_two_objectives_draw_the_front(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        book.open_session(settings(against="step_seconds", scheduler="none"))
        for point, weight in enumerate((2.0, 1.0, 3.0, 6.0)):
            fill(book, point, weight)
        page = write_report(tmp_path / "report", book, name="front").read_text("utf-8")
    assert "points are on the front of score against step_seconds" in page and "Choose a point of the front" in page
    assert (tmp_path / "report" / "front.png").is_file()


def test_settings_that_change_in_flight_are_drawn_over_steps(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        book.open_session(settings(scheduler="pbt", searcher="random"))
        fill(book, BASELINE, 2.0)
        key = book.started(Job(1, 0, "search", {LAMBDA: 7.0})).job.key
        for step, turn in ((EVERY, Turn(EVERY, "p000-s0", {LAMBDA: 2.4})), (2 * EVERY, None), (FULL, None)):
            end: State = "finished" if step == FULL else "open"
            book.evaluated(key, step, {"heldout/r1": 0.1 + 0.01 * step}, "", end, turn=turn)
        page = write_report(tmp_path / "report", book, name="flight").read_text("utf-8")
        line = SweepTable(Console(), book, OBJECTIVE, Budget(), "search").line()
    assert "Schedule of point 1" in page and "the recipe as it is</td>" in page
    assert "fusion_weight=2.4 (since step 30)" in page and "The schedule of point 1 leads" in page
    assert "Parallel" not in page and "--points" not in page
    with Image.open(tmp_path / "report" / f"course-{LAMBDA}.png") as picture:
        assert picture.width > 600 and len(set(picture.convert("L").getdata())) > 20
    assert "1 went on from another checkpoint" in line


def test_points_are_compared_where_at_least_half_of_them_have_been(tmp_path: Path) -> None:
    with finished_sweep(tmp_path / "book.jsonl") as book:
        assert common_step(book, OBJECTIVE).step == EVERY
        for point in range(10, 16):
            fill(book, point, 4.0)
        later = common_step(book, OBJECTIVE)
        assert (later.step, len(later.points)) == (FULL, 4 + 6)
        assert not any("are few" in line for line in advice(book, None, later))


def test_importance_finds_the_axis_that_matters() -> None:
    points = [({"a": (n * 7) % 16, "b": ("x", "y")[n % 2]}, float((n * 7) % 16)) for n in range(32)]
    found = importance(points, ["a", "b"])
    assert found["a"] > 0.8 > found["b"]
    assert importance(points[:4], ["a", "b"]) == {}, "a few points say nothing"


def test_a_best_point_at_the_border_is_told(tmp_path: Path) -> None:
    with Book(tmp_path / "book.jsonl") as book:
        book.open_session(settings(space=[["method.fusion_weight", "0..4.1", ""]]))
        fill(book, BASELINE, 2.0)
        fill(book, 1, 4.0)
        page = write_report(tmp_path / "report", book, name="edge").read_text("utf-8")
    assert "lies at the border of 0..4.1" in page
