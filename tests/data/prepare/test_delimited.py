"""Tables of separated fields: the right values from each dialect, every line of a file accounted for."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ito_ray.data.prepare.delimited import Delimited, Dialect, Quoting, open_delimited
from ito_ray.data.prepare.table_text import TableText
from ito_ray.errors import ConfigError, DataError
from tests.data.prepare.table_files import ROWS, listed, pairs, write


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_every_dialect_of_the_csv_module(
    tmp_path: Path, suffix: str, separator: str, ending: str, encoding: str
) -> None:
    path = tmp_path / f"t{suffix}"
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator, lineterminator=ending).writerows([("image", "caption"), *ROWS])
    expected = ROWS if ending != "\r" else [(image, text.replace("\n", " ")) for image, text in ROWS]
    assert pairs(path) == expected


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("doubled", [True, False])
def test_pandas(tmp_path: Path, quoting: Any, doubled: bool) -> None:
    frame = pd.DataFrame(ROWS, columns=["image", "caption"])
    escape: dict[str, Any] = {} if doubled else {"doublequote": False, "escapechar": "\\"}
    frame.to_csv(tmp_path / "t.csv", quoting=quoting, **escape)
    assert pairs(tmp_path / "t.csv") == ROWS
    assert listed(tmp_path / "t.csv")[2].meta == {"column 1": "2"}
    frame.to_csv(tmp_path / "t.csv.gz", index=False, quoting=quoting, **escape)
    assert pairs(tmp_path / "t.csv.gz") == ROWS


def test_quotes_after_a_backslash_in_fields_without_quotes(tmp_path: Path) -> None:
    rows = [("a.png", 'a "small" cat'), ("b.png", '"start'), ("c.png", "x, y")]
    frame = pd.DataFrame(rows, columns=["image", "caption"])
    frame.to_csv(tmp_path / "t.csv", index=False, doublequote=False, escapechar="\\")
    assert pairs(tmp_path / "t.csv") == rows
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert pairs(tmp_path / "t.csv") == rows


def test_arrow(tmp_path: Path) -> None:
    table = pa.table({"image": [row[0] for row in ROWS], "caption": [row[1] for row in ROWS]})
    pyarrow.csv.write_csv(table, tmp_path / "t.csv")
    assert pairs(tmp_path / "t.csv") == ROWS


@pytest.mark.parametrize("opened", ['"Hello', '"Hello" she said', '6" is "not" much', '"', 'she said "'])
def test_a_quote_in_unquoted_text_swallows_nothing(tmp_path: Path, opened: str) -> None:
    rows = [(f"{n}.jpg", f"caption {n}") for n in range(40)]
    rows[2] = ("2.jpg", opened)
    rows[35] = ("35.jpg", 'a screen of 6"')
    for suffix, separator in ((".tsv", "\t"), (".csv", ","), (".csv", ";"), (".csv", "|")):
        lines = [separator.join(row) for row in (("image", "caption"), *rows)]
        path = write(tmp_path / f"t{suffix}", "\n".join(lines) + "\n")
        assert pairs(path) == rows


def test_two_lone_quotes_without_picture_names_are_text_where_tabs_separate(tmp_path: Path) -> None:
    lines = ["image\tcaption", '1\t"one', "2\ttwo", '3\tthree"']
    assert pairs(write(tmp_path / "t.tsv", "\n".join(lines))) == [("1", '"one'), ("2", "two"), ("3", 'three"')]


def test_a_quote_that_is_never_closed_costs_its_line_alone_and_is_named(tmp_path: Path) -> None:
    lines = ["image,caption", 'a.png,"one, two"', 'b.png,"never, closed']
    lines += [f'{n}.png,"caption, {n}"' for n in range(33)]
    rows = listed(write(tmp_path / "t.csv", "\n".join(lines) + "\n"))
    assert [(row.key, row.bad) for row in rows if row.bad] == [("line 3", "bad_row")]
    assert "line 3: a quote is opened here and not closed" in next(row.detail for row in rows if row.bad)
    assert [row.captions for row in rows if not row.bad] == [["one, two"], *([f"caption, {n}"] for n in range(33))]
    rows = listed(write(tmp_path / "t.csv", "\n".join([*lines, 'z.png,"at, the end'])))
    assert [row.key for row in rows if row.bad] == ["line 3", "line 37"]


def test_lines_of_a_quoted_text_are_no_rows(tmp_path: Path) -> None:
    text = 'image,caption\na.png,"one\ntwo, three\n\nfour"\nb.png,x\n'
    assert pairs(write(tmp_path / "t.csv", text)) == [("a.png", "one\ntwo, three\n\nfour"), ("b.png", "x")]


def test_flickr(tmp_path: Path) -> None:
    text = '1.jpg#0\tTwo young guys .\n1.jpg#1\tTwo , friends\n2.jpg#0\t"A" sign\n'
    rows = [("1.jpg", "Two young guys ."), ("1.jpg", "Two , friends"), ("2.jpg", '"A" sign')]
    for name in ("results_20130124.token", "Flickr8k.token.txt"):
        assert pairs(write(tmp_path / name, text)) == rows
    text = "image_name| comment_number| comment\n1.jpg| 0| Two , guys\n1.jpg| 1| a | b\n2.jpg| 4   A dog\n"
    found = listed(write(tmp_path / "results.csv", text))
    assert [(row.key, row.captions, row.bad) for row in found] == [
        ("1", ["Two , guys"], None),
        ("line 3", [], "bad_row"),
        ("line 4", [], "bad_row"),
    ]
    assert found[0].image == str(tmp_path / "1.jpg")
    assert pairs(write(tmp_path / "captions.txt", "image,caption\n1.jpg,A dog .\n")) == [("1.jpg", "A dog .")]


def test_a_file_that_is_called_like_a_flickr_caption_is_taken_literally(tmp_path: Path) -> None:
    (tmp_path / "1.jpg#0").write_bytes(b"x")
    assert pairs(write(tmp_path / "t.token", "1.jpg#0\tx\n1.jpg#1\ty\n")) == [("1.jpg#0", "x"), ("1.jpg", "y")]


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;", "sep=;;;"])
def test_what_excel_writes(tmp_path: Path, first: str) -> None:
    text = f"{first}\r\nimage;caption;;\r\na.png;eins, zwei;;\r\nb.png;drei;;\r\n\r\n;;;\r\n"
    rows = listed(write(tmp_path / "t.csv", text, "utf-8-sig"))
    assert [(row.key, row.captions, row.bad) for row in rows] == [
        ("a", ["eins, zwei"], None),
        ("b", ["drei"], None),
        ("line 6", [], "missing_image"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_excel_names_the_tab(tmp_path: Path, encoding: str) -> None:
    assert pairs(write(tmp_path / "t.csv", "sep=\t\r\nimage\tcaption\r\na.png\tx, y\r\n", encoding)) == [
        ("a.png", "x, y")
    ]


def test_eight_bit_encodings_are_read_where_they_are_named_and_else_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,caption\na.png,Häuser\nb.png,x\n", "cp1252")
    assert pairs(path, encoding="cp1252") == [("a.png", "Häuser"), ("b.png", "x")]
    assert [row.captions for row in listed(path)] == [["H\udce4user"], ["x"]]
    with pytest.raises(ConfigError, match=r"--encoding='utf-9' is no encoding of text"):
        listed(path, encoding="utf-9")
    with pytest.raises(ConfigError, match=r"--encoding='base64' is no encoding of text"):
        listed(path, encoding="base64")
    with pytest.raises(DataError, match="line 1, where the names of the columns belong: a quote is opened"):
        listed(write(tmp_path / "q.csv", '"image,caption\na.png,x\n'), quoting="double")
    with pytest.raises(DataError, match="is not what its encoding says"):
        listed(write(tmp_path / "u.csv", "image,caption\na.png,xy\n"), encoding="utf-16")


def test_rows_that_do_not_fit_are_named(tmp_path: Path) -> None:
    text = "image,caption\na.png,x,\nb.png\n\n  \nc.png,x,y\nd.png,\x00\n"
    rows = listed(write(tmp_path / "t.csv", text))
    assert [(row.key, row.bad, row.detail) for row in rows if row.bad] == [
        ("line 3", "bad_row", "line 3: 1 fields, the header has 2"),
        ("line 6", "bad_row", "line 6: 3 fields, the header has 2"),
    ]
    assert [row.key for row in rows if not row.bad] == ["a", "d"]


def test_fields_after_a_space_may_be_quoted(tmp_path: Path) -> None:
    text = 'image, caption\na.png, "one, two"\nb.png, three\n'
    assert pairs(write(tmp_path / "t.csv", text)) == [("a.png", "one, two"), ("b.png", "three")]


def test_without_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "a.png,one\nb.png,two\n")
    with pytest.raises(DataError, match=r"has no header, its first line is a row \(a.png, one\).*--names image"):
        listed(path)
    assert pairs(path, names=("image", "caption")) == [("a.png", "one"), ("b.png", "two")]
    path = write(tmp_path / "cc3m.tsv", "a very typical bus station\thttp://x/1.jpg\nb\thttp://x/2.jpg\n")
    assert pairs(path, names=("caption", "url")) == [("1.jpg", "a very typical bus station"), ("2.jpg", "b")]


def test_an_unusual_dialect_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed(write(tmp_path / "a.csv", 'image,caption\na.png,"x, y"\n'))
    assert not caplog.messages
    path = write(tmp_path / "b.csv", 'image;caption\na.png;"x\n', "utf-16")
    listed(path)
    assert caplog.messages == [f"{path}: read as utf-16, separator semicolon, quotes are text."]


def test_options_override_what_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", 'image^caption\na.png^"x"\n')
    assert pairs(path, separator="^") == [("a.png", "x")]
    assert pairs(path, separator="^", quoting="none") == [("a.png", '"x"')]
    with pytest.raises(ConfigError, match="give one character"):
        listed(path, separator="::")
    assert pairs(write(tmp_path / "t.txt", "image\tcaption\na.png\tx\n"), separator="tab") == [("a.png", "x")]


TEXT = st.text(st.sampled_from("ab \"',;\t|\\é家"), max_size=12).map(str.strip)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(TEXT, min_size=1, max_size=8),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_what_the_csv_module_writes_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, captions: list[str], separator: str, quoting: Any
) -> None:
    path = tmp_path_factory.mktemp("t") / "t.csv"
    rows = [(f"{number}.png", caption, "end") for number, caption in enumerate(captions)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator, quoting=quoting).writerows([("image", "caption", "more"), *rows])
    found = open_delimited(TableText.open(path), ",", Dialect(quoting="double"), {"image", "caption"})
    assert [row.values for row in found.rows()] == rows


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.sampled_from('a.png,"\\x\n\r\t;'), max_size=14), max_size=12), st.sampled_from("\n\r"))
def test_every_line_belongs_to_one_row(tmp_path_factory: pytest.TempPathFactory, lines: list[str], ending: str) -> None:
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_bytes(ending.join(["image,caption", *lines]).encode())
    text = TableText.open(path)
    blank = {number for number, line in enumerate(text.lines(), 1) if not line.strip(" \n")}
    readings: tuple[Quoting, ...] = ("double", "backslash", "none")
    for reading in readings:
        rows = list(Delimited(text, ",", reading, ("image", "caption"), header=False).rows())
        used = [line for row in rows for line in range(row.line, row.line + row.lines)]
        assert len(used) == len(set(used))
        everything = set(range(1, sum(1 for _ in text.lines()) + 1))
        assert everything - set(used) <= blank, "a line is lost"
