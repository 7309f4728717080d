"""Tables as programs write them: the right values from each dialect, every line of a file accounted for."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ito_ray.data.prepare.delimited import Delimited, Dialect, Quoting, open_delimited
from ito_ray.data.prepare.listing import Listed, ListedSource
from ito_ray.data.prepare.table_text import TableText
from ito_ray.data.prepare.tables import Columns, list_classes, list_table, open_table
from ito_ray.errors import ConfigError, DataError

ROWS = [
    ("a.png", "plain"),
    ("b.png", 'with "quotes", a comma; a semicolon'),
    ("c.png", "zwei Häuser – 家"),
    ("d.png", "two\nlines"),
    ("e.png", '"all of it in quotes"'),
    ("f.png", "  spaces, around  "),
]


def listed(path: Path, **dialect: Any) -> list[Listed]:
    return list_table(path, None, Columns(), Dialect(**dialect))[0]


def pairs(path: Path, **dialect: Any) -> list[tuple[str, str]]:
    """Name and caption of each row, none of them bad."""
    rows = listed(path, **dialect)
    assert not [row for row in rows if row.bad], rows
    return [(Path(row.image).name, caption) for row in rows for caption in row.captions]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


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


@pytest.mark.parametrize("orient", ["lines", "records"])
def test_pandas_json(tmp_path: Path, orient: Any) -> None:
    frame = pd.DataFrame(ROWS, columns=["image", "caption"])
    path = tmp_path / "t.json"
    frame.to_json(path, orient="records", lines=orient == "lines")
    assert pairs(path) == ROWS


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


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;"])
def test_what_excel_writes(tmp_path: Path, first: str) -> None:
    text = f"{first}\r\nimage;caption;;\r\na.png;eins, zwei;;\r\nb.png;drei;;\r\n\r\n;;;\r\n"
    rows = listed(write(tmp_path / "t.csv", text, "utf-8-sig"))
    assert [(row.key, row.captions, row.bad) for row in rows] == [
        ("a", ["eins, zwei"], None),
        ("b", ["drei"], None),
        ("line 6", [], "missing_image"),
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


@pytest.mark.parametrize("suffix", [".csv.gz", ".csv.bz2", ".csv.xz", ".csv.zst", ".csv", ".jsonl.gz"])
def test_packed_tables(tmp_path: Path, suffix: str) -> None:
    rows = [(f"{n}.png", f"x {n * 7919}") for n in range(3000)]
    lines = [json.dumps({"image": image, "caption": caption}) for image, caption in rows]
    if ".csv" in suffix:
        lines = ["image,caption", *map(",".join, rows)]
    data = "\n".join(lines).encode()
    packed = {
        ".gz": gzip.compress(data[:50]) + gzip.compress(data[50:]),
        ".bz2": bz2.compress(data),
        ".xz": lzma.compress(data),
        ".zst": bytes(pa.compress(data, "zstd")),
        ".csv": gzip.compress(data),  # by its content, whatever its name
    }["." + suffix.rpartition(".")[2]]
    path = tmp_path / f"t{suffix}"
    path.write_bytes(packed)
    assert pairs(path) == rows
    path.write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(DataError, match="cannot be read to its end"):
        listed(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"PK\x03\x04xx", "an Excel workbook"),
        ("t.csv", b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
        ("t.csv", b"PAR1", "let its name end in .parquet"),
        ("t.csv", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("t.json", b'{"images": [], "annotations": []}', "use prepare coco"),
        ("t.json", b'[\n {"image": "a.png",\n  "caption": "x"},\n', "is not JSON: "),
        ("t.json", b'{"image": {"0": "a.png"}, "caption": {"0": "x"}}', "orient='records'"),
    ],
)
def test_files_of_another_kind_are_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        listed(tmp_path / name)


def test_tables_that_cannot_be_opened_are_a_sentence(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / ("x" * 300 + ".csv"), tmp_path / "none.csv"):
        with pytest.raises(DataError, match="There is no table"):
            listed(path)


def test_json_columns_are_those_of_all_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "a.png"},
        {"image": "b.png", "caption": "x"},
        {"caption": ["y", "z"], "image": "c.png"},
    ]
    for text in ("\n".join(map(json.dumps, rows)), json.dumps(rows, indent=1)):
        for suffix in (".json", ".jsonl"):
            found = listed(write(tmp_path / f"t{suffix}", text))
            assert [row.captions for row in found] == [[], ["x"], ["y", "z"]]


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    text = '{"image": "a.png", "caption": "x", "score": NaN, "deep": [{"a": -Infinity}, 1.5]}\n'
    (row,) = listed(write(tmp_path / "t.jsonl", text))
    assert row.meta == {"score": None, "deep": [{"a": None}, 1.5]}
    table = pa.table({"image": ["a.png", None], "caption": ["x", "y"], "score": [float("nan"), 1.0]})
    pq.write_table(table, tmp_path / "t.parquet")
    row, bad = listed(tmp_path / "t.parquet")
    assert row.meta == {"score": None}
    assert (bad.bad, bad.detail) == ("missing_image", "column 'image' is empty")


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ('["a", "b, c"]', ["a", "b, c"]),
        ("['a', \"it's\"]", ["a", "it's"]),
        ("['a' 'b']", ["a", "b"]),
        ("['a'\n 'b']", ["a", "b"]),
        ("[a cat] in brackets", ["[a cat] in brackets"]),
        ("[cat]", ["[cat]"]),
        ("[1, 2]", ["[1, 2]"]),
        ("['a', f(x)]", ["['a', f(x)]"]),
        ("[]", []),
        ("['a']['b']", ["['a']['b']"]),
    ],
)
def test_a_list_in_a_cell_is_a_list_of_captions(tmp_path: Path, cell: str, captions: list[str]) -> None:
    pd.DataFrame({"image": ["a.png"], "caption": [cell]}).to_csv(tmp_path / "t.csv", index=False)
    assert listed(tmp_path / "t.csv")[0].captions == captions


def test_lists_as_pandas_writes_them(tmp_path: Path) -> None:
    lists = [["a dog", "it's a dog"], ['so "small"', "x"]]
    for column in (lists, [np.array(one, object) for one in lists]):
        pd.DataFrame({"image": ["a.png", "b.png"], "caption": column}).to_csv(tmp_path / "t.csv", index=False)
        assert [row.captions for row in listed(tmp_path / "t.csv")] == lists


@pytest.mark.parametrize("image", [".", "/", "..", "x" * 300, "a\x00.png", "http://x/?id=1.5", "http://x/?id=1.7"])
def test_any_text_may_stand_where_a_path_belongs(tmp_path: Path, image: str) -> None:
    (row,) = listed(write(tmp_path / "t.jsonl", json.dumps({"image": image, "caption": "x"})))
    assert row.bad is None
    assert row.key == image or not image.startswith("http")


def test_capitals_of_names_do_not_matter(tmp_path: Path) -> None:
    assert pairs(write(tmp_path / "t.csv", "URL,TEXT\nhttp://x/a.png,x\n")) == [("a.png", "x")]


def test_parquet_values_that_python_cannot_hold_cost_no_others(tmp_path: Path) -> None:
    times = pa.array([0, 400_000_000_000_000_000], pa.timestamp("us"))
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff\xfe"], pa.binary()).buffers())
    lists = pa.ListArray.from_arrays([0, 1, 2], broken)
    for captions in (broken, lists):
        table = pa.table({"image": ["a.png", "b.png"], "caption": captions, "time": times})
        pq.write_table(table, tmp_path / "t.parquet")
        rows = listed(tmp_path / "t.parquet")
        assert [row.captions for row in rows] == [["ok"], ["\udcff\udcfe"]]
        assert [row.meta for row in rows] == [{}, {}]


def test_bytes_are_text_where_captions_belong_and_no_path_where_a_picture_does(tmp_path: Path) -> None:
    captions = pa.array([b"ok", b"\xff"], pa.binary())
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "caption": captions}), tmp_path / "t.parquet")
    assert [row.captions for row in listed(tmp_path / "t.parquet")] == [["ok"], ["\udcff"]]
    pq.write_table(pa.table({"image": captions, "caption": ["x", "y"]}), tmp_path / "t.parquet")
    assert {(row.bad, row.detail) for row in listed(tmp_path / "t.parquet")} == {
        ("missing_image", "column 'image' holds the picture itself, not its path: use prepare shards")
    }


def test_a_number_is_no_caption(tmp_path: Path) -> None:
    (row,) = listed(write(tmp_path / "t.jsonl", '{"image": "a.png", "caption": 1984}'))
    source = ListedSource.write([row], tmp_path / "listing.parquet", {})
    assert [row.bad for _, row in source.read(0)] == ["caption_not_text"]
    (row,) = listed(write(tmp_path / "t.jsonl", '{"image": "a.png", "caption": ["x", 7, NaN, null]}'))
    assert row.captions == ["x", 7]


def _labels(path: Path, column: str = "label") -> list[tuple[str, list[str], str | None]]:
    return [(Path(row.image).name, row.captions, row.bad) for row in list_classes(path, column)]


def test_classes_of_tables(tmp_path: Path) -> None:
    text = 'image,"label, in English"\na.png,"ice  cream, vanilla "\nb.png,1\nc.png,\na.png,"ice cream, vanilla"\n'
    path = write(tmp_path / "t.csv", text)
    assert open_table(path).names == ("image", "label, in English")
    assert _labels(path, "label, in English") == [
        ("a.png", ["ice cream, vanilla"], None),
        ("b.png", ["1"], None),
        ("", [], "missing_class"),
    ]
    rows = [("a.png", 1), ("b.png", 2.0), ("c.png", 2.5), ("d.png", True), ("e.png", None), ("f.png", float("nan"))]
    text = "\n".join(json.dumps({"image": image, "label": label}) for image, label in rows)
    found = _labels(write(tmp_path / "t.jsonl", text))
    assert [label for _, label, _ in found] == [["1"], ["2"], ["2.5"], ["True"], [], []]
    names = pd.Series(["cat", "dog"], dtype="category")
    pd.DataFrame({"image": ["a.png", "b.png"], "label": names}).to_parquet(tmp_path / "t.parquet")
    assert _labels(tmp_path / "t.parquet") == [("a.png", ["cat"], None), ("b.png", ["dog"], None)]


def test_a_picture_of_two_classes_has_none(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,label\na.png,cat\nb.png,cat\na.png,dog\n")
    (a, b) = list_classes(path, "label")
    assert (a.bad, a.detail, b.bad) == ("several_classes", "'cat' and 'dog'", None)


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
