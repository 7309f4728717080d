"""Blocks of samples, and the account of every row that did not become one."""

from __future__ import annotations

import itertools
import json
import pickle
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ito_ray.config.schema import ColumnsConfig, ViewsConfig
from ito_ray.data import rows as rows_module
from ito_ray.data import samples
from ito_ray.data.plan import Piece
from ito_ray.data.rows import Row, read_patiently, read_piece
from ito_ray.data.samples import Block, SampleSpec, make_block
from ito_ray.data.tally import Lost, Tally
from ito_ray.data.tokens import load_tokenizer, tokenize, train_wordpiece
from tests.data.makers import damage, encoded, good, good_tar, noise, picture, png, write_tar

SIZE, CONTEXT = 16, 12


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> SampleSpec:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_wordpiece([f"picture number {i} of some" for i in range(50)], 200, CONTEXT).save_pretrained(folder)
    return SampleSpec(ViewsConfig(), 1, SIZE, 64_000_000, load_tokenizer(folder), CONTEXT)


def _make(rows: Sequence[Row], spec: SampleSpec, **options: Any) -> tuple[Block, Tally]:
    block, report = make_block([(Piece("a", 0, 1), rows)], spec, **options)
    assert set(report.tallies) == {0} and not block["source"].any()
    assert Counter(one.reason for one in report.lost) == report.tallies[0].dropped
    return block, report.tallies[0]


def _rows(path: Path, parts: int = 1) -> list[Row]:
    return [row for part in range(parts) for row in read_piece(Piece(str(path), part, parts), ColumnsConfig())]


def _block(path: Path, spec: SampleSpec) -> tuple[Block, Tally]:
    block, tally = _make(_rows(path), spec, seed=0, entry=0)
    assert tally.read == tally.delivered + sum(tally.dropped.values())
    assert tally.delivered == len(block["uid"]) == len(block["views"]) == len(block["ids"]) == len(block["lengths"])
    assert set(tally.examples) == set(tally.dropped)
    return block, tally


def _pixels(mode: str) -> bytes:
    if mode == "I;16":
        return encoded(Image.fromarray(noise(20, 20)[..., 0].astype(np.uint16) * 257))
    image = Image.fromarray(noise(20, 20)).convert(mode)
    return encoded(image, "JPEG" if mode == "CMYK" else "PNG")


SOUND = {
    "RGBA": {"png": _pixels("RGBA"), "txt": b"some"},
    "palette": {"png": _pixels("P"), "txt": b"some"},
    "CMYK": {"jpg": _pixels("CMYK"), "txt": b"some"},
    "16-bit": {"png": _pixels("I;16"), "txt": b"some"},
    "grey": {"png": _pixels("L"), "txt": b"some"},
    "png named jpg": {"jpg": picture(1), "txt": b"some"},
    "json caption": {"png": picture(1), "json": b'{"caption": "some"}'},
    "json captions": {"png": picture(1), "json": b'{"captions": ["some", "picture"]}'},
    "empty text but json": {"png": picture(1), "txt": b" ", "json": b'{"text": "some"}'},
    "byte order mark": {"png": picture(1), "txt": b"\xef\xbb\xbfsome"},
    "half a surrogate beside a good one": {"png": picture(1), "txt": b"some", "json": b'{"caption": "\\ud83d"}'},
    "not utf-8 beside a good one": {"png": picture(1), "txt": b"caf\xe9", "json": b'{"caption": "some"}'},
    "no string beside a good one": {"png": picture(1), "json": b'{"captions": ["some", 1, null, ["some"]]}'},
    "megabytes beside a good one": {"png": picture(1), "txt": b"x" * 20_000_000, "json": b'{"text": "some"}'},
    "surrogates in meta data": {"png": picture(1), "txt": b"some", "json": b'{"\\ud83d": "\\ud83d", "n": NaN}'},
}
NOTED = {
    "half a surrogate beside a good one": {"caption_not_utf8": 1},
    "not utf-8 beside a good one": {"caption_not_utf8": 1},
    "no string beside a good one": {"caption_not_text": 1},
    "megabytes beside a good one": {"caption_too_long": 1},
}
"""Captions left out of sound samples."""
BAD = {
    "text named jpg": ({"jpg": b"<html>404</html>", "txt": b"some"}, "image_unreadable"),
    "cut picture": ({"png": picture(1)[:400], "txt": b"some"}, "image_truncated"),
    "empty picture": ({"png": b"", "txt": b"some"}, "missing_image"),
    "no picture": ({"txt": b"some"}, "missing_image"),
    "other member": ({"mp4": b"film", "txt": b"some"}, "missing_image"),
    "no caption": ({"png": picture(1)}, "missing_caption"),
    "json without one": ({"png": picture(1), "json": b'{"name": "star"}'}, "missing_caption"),
    "empty caption": ({"png": picture(1), "txt": b" \n"}, "empty_caption"),
    "only an entity": ({"png": picture(1), "txt": b"&nbsp;"}, "empty_caption"),
    "empty list": ({"png": picture(1), "json": b'{"captions": []}'}, "missing_caption"),
    "half a surrogate": ({"png": picture(1), "json": b'{"caption": "a \\ud83d b"}'}, "caption_not_utf8"),
    "half a surrogate, raw": ({"png": picture(1), "json": b'{"caption": "\xed\xa0\xbd"}'}, "caption_not_utf8"),
    "megabytes": ({"png": picture(1), "txt": b"x " * 10_000_000}, "caption_too_long"),
    "number of a million digits": ({"png": picture(1), "txt": b"some", "json": b"1" * 1_000_000}, "bad_json"),
    "latin-1": ({"png": picture(1), "txt": b"caf\xe9"}, "caption_not_utf8"),
    "broken json": ({"png": picture(1), "json": b'{"caption": '}, "bad_json"),
    "json of another kind": ({"png": picture(1), "txt": b"some", "json": b"[1]"}, "bad_json"),
    "json not utf-8": ({"png": picture(1), "json": b'{"caption": "\xe9"}'}, "bad_json"),
    "captions no strings": ({"png": picture(1), "json": b'{"captions": [1]}'}, "bad_json"),
    "deep json": ({"png": picture(1), "json": b"[" * 200_000}, "bad_json"),
    "200 megapixels": ({"png": png(20_000, 10_000), "txt": b"some"}, "too_many_pixels"),
}


@pytest.mark.parametrize("name", SOUND)
def test_every_kind_of_sound_sample_is_delivered(tmp_path: Path, spec: SampleSpec, name: str) -> None:
    write_tar(tmp_path / "a.tar", [("x", SOUND[name])])
    block, tally = _block(tmp_path / "a.tar", spec)
    assert (tally.read, tally.delivered, tally.dropped) == (1, 1, {}) and block["lengths"][0, 0] == 3
    assert tally.notes == NOTED.get(name, {})


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sample_is_counted_and_the_others_survive(tmp_path: Path, spec: SampleSpec, name: str) -> None:
    members, reason = BAD[name]
    write_tar(tmp_path / "a.tar", [("a", good(0)), ("x", members), ("b", good(1))])
    _, tally = _block(tmp_path / "a.tar", spec)
    assert (tally.read, tally.delivered, tally.dropped) == (3, 2, {reason: 1})
    assert tally.examples[reason][0].startswith(f"{tmp_path}/a.tar#x: ")


def test_duplicate_key(tmp_path: Path, spec: SampleSpec) -> None:
    write_tar(tmp_path / "a.tar", [("a", good(0)), ("b", good(1)), ("a", good(2))])
    assert _block(tmp_path / "a.tar", spec)[1].dropped == {"duplicate_key": 1}


def test_truncated_tar(tmp_path: Path, spec: SampleSpec) -> None:
    offsets = good_tar(tmp_path / "a.tar", 9)
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[: offsets[12] + 600])
    _, tally = _block(tmp_path / "a.tar", spec)
    assert (tally.read, tally.delivered, tally.dropped) == (7, 6, {"tar_truncated": 1})


def test_damaged_header_in_the_middle(tmp_path: Path, spec: SampleSpec) -> None:
    damage(tmp_path / "a.tar", good_tar(tmp_path / "a.tar", 9)[8])
    _, tally = _block(tmp_path / "a.tar", spec)
    assert (tally.read, tally.delivered, tally.dropped) == (9, 8, {"tar_damaged": 1})


def test_no_tar_and_bad_footer(tmp_path: Path, spec: SampleSpec) -> None:
    (tmp_path / "a.tar").write_bytes(b"<html>" * 500)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no footer")
    for name, reason in (("a.tar", "not_a_tar"), ("a.parquet", "parquet_unreadable")):
        block, tally = _block(tmp_path / name, spec)
        assert tally.dropped == {reason: 1}
        assert block["views"].shape == (0, 2, SIZE, SIZE, 3) and block["ids"].shape == (0, 1, CONTEXT)
        assert block["lengths"].shape == (0, 1) and block["uid"].dtype == np.int64


def test_everything_at_once_in_any_number_of_pieces(tmp_path: Path, spec: SampleSpec) -> None:
    samples: list[tuple[str, Any]] = [(f"bad{i:02d}", members) for i, (members, _) in enumerate(BAD.values())]
    samples += [(f"sound{i:02d}", members) for i, members in enumerate(SOUND.values())]
    write_tar(tmp_path / "a.tar", samples, tarfile.GNU_FORMAT)
    tallies = {_make(_rows(tmp_path / "a.tar", parts), spec, seed=0, entry=0)[1].read for parts in (1, 2, 9)}
    assert tallies == {len(BAD) + len(SOUND)}
    _, tally = _block(tmp_path / "a.tar", spec)
    assert tally.delivered == len(SOUND)
    reasons = [reason for _, reason in BAD.values()]
    assert tally.dropped == {reason: reasons.count(reason) for reason in reasons}
    assert all(len(examples) <= 2 for examples in tally.examples.values())


def test_tar_and_parquet_give_the_same_samples(tmp_path: Path, spec: SampleSpec) -> None:
    good_tar(tmp_path / "a.tar", 5)
    columns = {
        "key": [f"s{i:03d}" for i in range(5)],
        "image": [picture(i) for i in range(5)],
        "caption": [f"picture number {i}" for i in range(5)],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    one, two = (_block(tmp_path / name, spec)[0] for name in ("a.tar", "a.parquet"))
    assert all((one[name] == two[name]).all() for name in ("uid", "views", "ids", "lengths"))


def test_captions_of_text_and_json_in_order_and_meta(tmp_path: Path) -> None:
    document = {"captions": ["two", "one"], "caption": "three", "name": "star", "text": " "}
    write_tar(tmp_path / "a.tar", [("x", {"png": b"x", "txt": b"one", "json": json.dumps(document).encode()})])
    (row,) = _rows(tmp_path / "a.tar")
    assert row.captions == ("one", "two", "three") and row.meta == {"name": "star"}


def test_halves_that_belong_together_are_the_emoji(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x", {"png": b"x", "json": b'{"caption": "\\ud83d\\ude00", "n": "\\ud83d!"}'})])
    (row,) = _rows(tmp_path / "a.tar")
    assert row.captions == ("\U0001f600",) and row.meta == {"n": "?!"} and row.notes == ()


def _failing(real: Any, at: int) -> Any:
    """The function, but each call with what the argument number `at` says "bad" in fails."""

    def failing(*arguments: Any, **options: Any) -> Any:
        if "bad" in str(arguments[at]):
            raise TypeError("argument 'input': no text")
        return real(*arguments, **options)

    return failing


@pytest.mark.parametrize(("name", "at"), [("make_views", 0), ("draw", 0), ("fill", 0), ("tokenize", 1)])
def test_whatever_a_sample_raises_costs_that_sample_alone(
    tmp_path: Path, spec: SampleSpec, monkeypatch: pytest.MonkeyPatch, name: str, at: int
) -> None:
    good_tar(tmp_path / "a.tar", 8)
    rows = _rows(tmp_path / "a.tar")
    whole, _ = _make(rows, spec, seed=0, entry=1)
    rows[3] = Row("s003", rows[3].image if name != "make_views" else b"bad", ("a bad one",), url="a.tar")
    monkeypatch.setattr(samples, name, _failing(getattr(samples, name), at))
    block, tally = _make(rows, spec, seed=0, entry=1)
    assert (tally.read, tally.delivered, tally.dropped) == (8, 7, {"unexpected_error": 1})
    assert tally.examples == {"unexpected_error": ["a.tar#s003: TypeError: argument 'input': no text"]}
    kept = whole["uid"] & 0xFFFFFFFF != 3
    assert all((block[name] == whole[name][kept]).all() for name in block)


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_whatever_a_shard_raises_costs_its_rest(
    tmp_path: Path, spec: SampleSpec, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    good_tar(tmp_path / "a.tar", 8)
    columns = {"image": [picture(i) for i in range(8)], "caption": ["a picture"] * 8}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    reader = "read_tar" if name.endswith("tar") else "read_parquet"
    real = getattr(rows_module, reader)

    def failing(*arguments: Any) -> Any:
        yield from itertools.islice(real(*arguments), 3)
        raise OverflowError("int too large to convert")

    monkeypatch.setattr(rows_module, reader, failing)
    found = read_patiently(Piece(str(tmp_path / name), 0, 1, rows=8), ColumnsConfig())
    _, tally = _make(found, spec, seed=0, entry=0)
    assert (tally.read, tally.delivered, tally.dropped) == (8, 3, {"unexpected_error": 5})
    assert "OverflowError: int too large to convert" in tally.examples["unexpected_error"][0]


def test_layout(tmp_path: Path, spec: SampleSpec) -> None:
    good_tar(tmp_path / "a.tar", 6)
    rows = _rows(tmp_path / "a.tar")
    block, _ = _make(rows, spec, seed=3, entry=70_000)
    assert sorted(block["uid"].tolist()) == [70_000 << 32 | place for place in range(6)]
    assert block["uid"].tolist() != sorted(block["uid"].tolist()), "shuffled"
    assert block["views"].shape == (6, 2, SIZE, SIZE, 3) and block["views"].dtype == np.uint8
    assert block["ids"].shape == (6, 1, CONTEXT) and block["ids"].dtype == block["lengths"].dtype == np.int32
    tokenizer = spec.tokenizer
    expected = tokenize(tokenizer, [row.captions[0] for row in rows], CONTEXT)
    found = {tuple(ids[0][: length[0]]) for ids, length in zip(block["ids"], block["lengths"], strict=True)}
    assert found == {tuple(ids[:n]) for ids, n in zip(expected.ids, expected.lengths, strict=True)}
    assert (block["ids"][:, 0, expected.ids.shape[1] :] == tokenizer.pad_token_id).all()


def test_same_call_same_block_and_another_for_another_seed_or_entry(tmp_path: Path, spec: SampleSpec) -> None:
    good_tar(tmp_path / "a.tar", 6)
    rows = _rows(tmp_path / "a.tar")
    spec = pickle.loads(pickle.dumps(spec))

    def views(seed: int, entry: int) -> np.ndarray:
        return _make(rows, spec, seed=seed, entry=entry)[0]["views"]

    assert (views(1, 2) == views(1, 2)).all()
    assert not (views(1, 2) == views(1, 3)).all() and not (views(1, 2) == views(2, 2)).all()


def test_bad_rows_have_places_too_and_do_not_move_the_others(tmp_path: Path, spec: SampleSpec) -> None:
    good_tar(tmp_path / "a.tar", 6)
    rows = _rows(tmp_path / "a.tar")
    whole, _ = _make(rows, spec, seed=0, entry=1)
    broken = [Row(row.key, b"text", row.captions) if index == 2 else row for index, row in enumerate(rows)]
    block, tally = _make(broken, spec, seed=0, entry=1)
    kept = np.isin(whole["uid"], block["uid"])
    assert tally.dropped == {"image_unreadable": 1} and kept.sum() == 5
    assert all((block[name] == whole[name][kept]).all() for name in block)


def test_places_taken_before_are_left_out_of_the_block_and_not_of_the_account(tmp_path: Path, spec: SampleSpec) -> None:
    good_tar(tmp_path / "a.tar", 6)
    rows = _rows(tmp_path / "a.tar")
    whole, _ = _make(rows, spec, seed=0, entry=1)
    rest, tally = _make(rows, spec, seed=0, entry=1, skip=frozenset({0, 4}))
    assert tally == Tally(6, 6)
    left = np.isin(whole["uid"] & 0xFFFFFFFF, [1, 2, 3, 5])
    assert all((rest[name] == whole[name][left]).all() for name in rest)


def test_slots_have_places_sources_and_accounts_of_their_own(tmp_path: Path, spec: SampleSpec) -> None:
    good_tar(tmp_path / "a.tar", 5)
    rows = _rows(tmp_path / "a.tar")
    bad = [Row("x", None, (), bad="missing_image"), *rows[:3]]
    pieces = [(Piece("a", 0, 1, source=2), rows), (Piece("b", 0, 1, source=0), bad), (Piece("c", 0, 1, source=2), [])]
    block, report = make_block(pieces, spec, seed=0, entry=3)
    tallies = report.tallies
    assert tallies[2] == Tally(5, 5)
    assert report.lost == (Lost(0, "", "x", "missing_image", "", 1 << 24),)
    assert (tallies[0].read, tallies[0].delivered, tallies[0].dropped) == (4, 3, {"missing_image": 1})
    place = block["uid"] & 0xFFFFFFFF
    assert sorted(place.tolist()) == [0, 1, 2, 3, 4, 1 << 24 | 1, 1 << 24 | 2, 1 << 24 | 3]
    assert (block["source"] == np.where(place >> 24 == 0, 2, 0)).all()

    gone = [(pieces[0][0], []), *pieces[1:]]  # as when a shard can no longer be read
    other, _ = make_block(gone, spec, seed=0, entry=3)
    one, two = (dict(zip(b["uid"].tolist(), b["views"], strict=True)) for b in (block, other))
    assert len(two) == 3 and all((one[uid] == view).all() for uid, view in two.items())

    _, again = make_block(gone, spec, seed=0, entry=3, skip=frozenset({1, 4, 1 << 24 | 2}))
    assert again.tallies[2] == Tally(2, 2), "taken before, and no longer to be read"
    assert again.tallies[0] == tallies[0]


def test_several_captions_and_views(tmp_path: Path, spec: SampleSpec) -> None:
    captions = [f"picture number {i}" for i in range(4)]
    row = Row("x", picture(0), tuple(captions))
    many = SampleSpec(ViewsConfig(count=3), 2, SIZE, 64_000_000, spec.tokenizer, CONTEXT)
    block, _ = _make([row] * 20, many, seed=0, entry=0)
    assert block["views"].shape == (20, 3, SIZE, SIZE, 3) and block["ids"].shape == (20, 2, CONTEXT)
    assert not (block["ids"][:, 0] == block["ids"][:, 1]).all(axis=1).any()
    assert len(np.unique(block["ids"].reshape(40, -1), axis=0)) == 4


CHOSEN = ColumnsConfig(captions_from={"alt": 3.0, "long": 1.0, "txt": 1.0})


def test_captions_from_chosen_fields_of_json_and_columns(tmp_path: Path) -> None:
    documents = [{"alt": "one", "long": ["two", "three"], "caption": "no"}, {"long": "four"}, {"caption": "no"}]
    members = [{"png": b"x", "json": json.dumps(document).encode()} for document in documents]
    members[1]["txt"] = b"five"
    write_tar(tmp_path / "a.tar", [(f"x{number}", member) for number, member in enumerate(members)])
    columns = {
        "image": [b"x"] * 3,
        "alt": ["one", None, None],
        "long": [["two", "three"], ["four"], None],
        "txt": [None, "five", None],
        "caption": ["no"] * 3,
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    for name in ("a.tar", "a.parquet"):
        rows = list(read_piece(Piece(str(tmp_path / name), 0, 1), CHOSEN))
        assert [row.captions for row in rows] == [("one", "two", "three"), ("four", "five"), ()]
        assert [row.weights for row in rows] == [(3.0, 0.5, 0.5), (1.0, 1.0), ()]
        assert [row.bad for row in rows] == [None, None, "missing_caption"]
        assert rows[0].meta == {"caption": "no"}


def test_templates_are_drawn_with_the_sample(spec: SampleSpec) -> None:
    row = Row("x", picture(0), ("picture",))
    with_templates = replace(spec, templates={"some {}": 0.5})
    block, _ = _make([row] * 40, with_templates, seed=0, entry=0)
    lengths = sorted(set(block["lengths"].ravel().tolist()))
    assert len(lengths) == 2 and lengths[1] == lengths[0] + 1
    again, _ = _make([row] * 40, with_templates, seed=0, entry=0)
    assert (block["ids"] == again["ids"]).all()


def test_tallies_add_up() -> None:
    one = Tally(5, 3, {"a": 2}, {"a": ["x", "y"]})
    two = Tally(4, 2, {"a": 1, "b": 1}, {"a": ["z"], "b": ["w"]})
    assert one + two == Tally(9, 5, {"a": 3, "b": 1}, {"a": ["x", "y"], "b": ["w"]})
    assert Tally() + one == one + Tally() == one
