"""Where keys end in a tar's names, and how its members are ordered: the same for all pieces, and nobody's neighbour."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ito_ray.config.schema import ColumnsConfig, KeyEnds
from ito_ray.data.plan import Piece
from ito_ray.data.rows import Row, read_piece
from ito_ray.data.tar import mean_sample_bytes
from ito_ray.data.tar_layout import where_keys_end

Pair = tuple[str, bytes | None, tuple[str, ...]]


def pack(path: Path, names: Iterable[str]) -> Path:
    """A tar of members that hold their own names."""
    with tarfile.open(path, "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name.encode())
            archive.addfile(info, io.BytesIO(name.encode()))
    return path


def read(path: Path, parts: int = 1, key_ends: KeyEnds = "auto") -> list[Row]:
    columns = ColumnsConfig(key_ends=key_ends)
    return [row for part in range(parts) for row in read_piece(Piece(str(path), part, parts), columns)]


def pairs(rows: Sequence[Row]) -> list[Pair]:
    return [(row.key, row.image, row.captions) for row in rows if row.bad is None]


def both(stems: Iterable[str]) -> list[str]:
    return [f"{stem}.{extension}" for stem in stems for extension in ("jpg", "txt")]


def expected(stems: Iterable[str]) -> list[Pair]:
    return [(stem, f"{stem}.jpg".encode(), (f"{stem}.txt",)) for stem in stems]


DOTTED = {
    "screenshots": [f"Screenshot 2024-05-01 at {hour}.{minute:02d}" for hour in (10, 11) for minute in range(0, 60, 7)],
    "numbered": [f"a.{number}" for number in range(5)],
    "numbered alike": [f"{letter}.{number}" for letter in "ab" for number in range(5)],
    "all of one key": [f"img.{number:06d}" for number in range(40)],
    "versions": ["v1.0", "v1.1", "v2.0", "v2.1.3"],
    "among plain ones": ["cat", "cat.1", "cat.2", "dog", "dog.1"],
    "in folders": [f"v1.0/b.{number}" for number in range(3)],
    "words": ["a.front", "a.side", "b.front", "b.side"],
}


@pytest.mark.parametrize("name", DOTTED)
@pytest.mark.parametrize("parts", [1, 3, 11])
def test_names_with_dots_are_whole_keys(tmp_path: Path, name: str, parts: int) -> None:
    stems = DOTTED[name]
    rows = read(pack(tmp_path / "a.tar", both(stems)), parts)
    assert pairs(rows) == expected(stems) and len(rows) == len(stems)
    dotted = sum(2 for stem in stems if "." in stem.rpartition("/")[2])
    assert [note for row in rows for note in row.notes] == ["key_to_last_dot"] * dotted


def test_what_lacks_a_member_gets_none_of_its_neighbours(tmp_path: Path) -> None:
    names = both(f"a.{number}" for number in range(6))
    names.remove("a.2.txt")
    names.remove("a.3.jpg")
    rows = read(pack(tmp_path / "a.tar", names))
    assert pairs(rows) == expected(f"a.{number}" for number in (0, 1, 4, 5))
    assert [(row.key, row.bad) for row in rows if row.bad] == [("a.2", "missing_caption"), ("a.3", "missing_image")]


def test_dots_that_come_after_the_head(tmp_path: Path) -> None:
    """A head without such names: they are names of files, not members that every sample has."""
    stems = [*(f"IMG_{number:05d}" for number in range(2000)), *DOTTED["screenshots"]]
    path = pack(tmp_path / "a.tar", both(stems))
    assert path.stat().st_size > 1 << 20
    for parts in (1, 7):
        assert pairs(read(path, parts)) == expected(stems)


SAMPLES: dict[str, dict[str, bytes]] = {
    "plain and more": {"jpg": b"image", "txt": b"text", "seg.png": b"segments", "meta.json": b"{}"},
    "all of two dots": {"img.jpg": b"image", "cap.txt": b"text", "seg.png": b"segments"},
    "two images": {"left.jpg": b"left", "right.jpg": b"right", "txt": b"text"},
    "caption in json": {"img.png": b"image", "cap.json": b'{"caption": "text"}'},
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("count", [2, 30])
def test_what_webdataset_writes_is_read_as_it_reads_it(tmp_path: Path, name: str, count: int) -> None:
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(count):
            writer.write({"__key__": f"{number:05d}", **SAMPLES[name]})
    theirs = [sample["__key__"] for sample in webdataset.WebDataset(str(path), shardshuffle=False)]
    for parts in (1, 4):
        rows = read(path, parts)
        assert [(row.key, row.bad, row.captions) for row in rows] == [(key, None, ("text",)) for key in theirs]
    assert {row.image for row in rows} == {next(iter(SAMPLES[name].values()))}
    assert {note for row in rows for note in row.notes} == {"key_to_first_dot"}


@pytest.mark.parametrize("extra", ["jpg.txt", "seg.png", "jpg.json", "caption.txt"])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_key_with_dots_and_a_member_with_two(tmp_path: Path, extra: str, parts: int) -> None:
    """`a.1.jpg` with `a.1.jpg.txt`, or with `a.1.seg.png` and `a.1.txt`."""
    stems = [f"{letter}.{number}" for letter in "ab" for number in range(4)]
    texts = extra if extra.endswith("txt") else "txt"
    names = [f"{stem}.{ending}" for stem in stems for ending in dict.fromkeys(["jpg", extra, texts])]
    rows = read(pack(tmp_path / "a.tar", [name for name in names if not name.endswith("json")]), parts)
    assert pairs(rows) == [(stem, f"{stem}.jpg".encode(), (f"{stem}.{texts}",)) for stem in stems]
    assert len(rows) == len(stems)


def test_members_of_several_samples_under_one_key_are_dropped_and_named(tmp_path: Path) -> None:
    names = [f"a.{number}.{ending}" for number in range(3) for ending in ("img.jpg", "cap.txt")]
    (row,) = read(pack(tmp_path / "a.tar", names))
    assert (row.key, row.bad) == ("a", "ambiguous_members")
    assert row.detail == (
        "0.img.jpg, 1.img.jpg, 2.img.jpg and 0.cap.txt, 1.cap.txt, 2.cap.txt: which belong together? "
        "Give data.columns.key_ends"
    )


def test_the_rule_can_be_given(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", both(["a.1", "a.2"]))
    assert pairs(read(path, key_ends="first_dot")) == [("a", b"a.1.jpg", ("a.1.txt",))]
    path = pack(tmp_path / "b.tar", [f"{n}.{e}" for n in range(3) for e in ("left.jpg", "txt")])
    assert [row.key for row in read(path, key_ends="last_dot")] == ["0.left", "0", "1.left", "1", "2.left", "2"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stems=st.lists(st.text("ab.1", min_size=1, max_size=5).map(lambda text: f"s{text}e"), min_size=1, unique=True),
    parts=st.integers(1, 9),
)
def test_equals_a_naive_reading_of_files_with_any_dots(tmp_path: Path, stems: list[str], parts: int) -> None:
    rows = read(pack(tmp_path / "a.tar", both(sorted(stems))), parts, "last_dot")
    assert pairs(rows) == expected(sorted(stems)) and len(rows) == len(stems)
    whole = read(tmp_path / "a.tar")
    assert read(tmp_path / "a.tar", parts) == whole
    assert {row.image for row in whole} <= {f"{stem}.jpg".encode() for stem in stems}
    assert all(row.image is None or row.image[:-3] + b"txt" in map(str.encode, row.captions) for row in whole)


def test_the_plan_counts_samples_as_they_are_read(tmp_path: Path) -> None:
    with pack(tmp_path / "a.tar", both(f"img.{number:04d}" for number in range(100))).open("rb") as file:
        assert mean_sample_bytes(file) == 4 * 512


def test_nothing_to_decide() -> None:
    assert where_keys_end([]) == where_keys_end(["a.jpg", "a.txt"]) == "last_dot"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    for name in both(f"{number:03d}" for number in range(9)):
        (made / name).write_bytes(name.encode())
    return made


def gnu_tar(folder: Path, *arguments: str) -> Path:
    path = folder.parent / "a.tar"
    subprocess.run(["tar", "-cf", str(path), *arguments], cwd=folder, check=True)
    return path


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("order", ["images first", "mixed"])
def test_members_apart_are_named_as_that(folder: Path, order: str, parts: int) -> None:
    names = sorted(path.name for path in folder.iterdir())
    names.sort(key=(lambda name: name[-3:]) if order == "images first" else (lambda name: hash_of(name)))
    rows = read(gnu_tar(folder, *names), parts)
    assert len(rows) == 18 and {row.bad for row in rows} == {"tar_unsorted"}
    assert "tar --sort=name" in rows[0].detail
    assert pairs(read(gnu_tar(folder, "--sort=name", "."), parts)) == expected(f"{number:03d}" for number in range(9))


def hash_of(name: str) -> int:
    """All images of odd numbers, then other texts, and so on."""
    number, image = int(name[:3]), name.endswith("jpg")
    return 2 * (number % 2) + image if number % 3 else 3 - 2 * (number % 2) - image


def test_one_member_that_was_appended(folder: Path) -> None:
    (folder / "new.jpg").write_bytes(b"new")
    path = gnu_tar(folder, "--sort=name", ".")
    (folder / "new.txt").write_bytes(b"a new one")
    subprocess.run(["tar", "-rf", str(path), "new.txt"], cwd=folder, check=True)
    pack(folder.parent / "b.tar", [*both(["a", "b", "c"]), "d.jpg", *both(["e"]), "d.txt"])
    rows = read(folder.parent / "b.tar")
    assert [(row.key, row.bad) for row in rows if row.bad] == [("d", "missing_caption"), ("d", "tar_unsorted")]
    assert len(pairs(rows)) == 4 and len(pairs(read(path))) == 10


def test_an_archive_without_captions_is_not_called_unsorted(tmp_path: Path) -> None:
    rows = read(pack(tmp_path / "a.tar", [f"{number}.jpg" for number in range(9)]))
    assert {row.bad for row in rows} == {"missing_caption"}


def test_links_say_what_they_are(folder: Path) -> None:
    os.link(folder / "000.jpg", folder / "hard.jpg")
    (folder / "hard.txt").write_bytes(b"hard")
    (folder / "soft.jpg").symlink_to("001.jpg")
    (folder / "soft.txt").write_bytes(b"soft")
    rows = read(gnu_tar(folder, "--sort=name", "."))
    assert pairs(rows) == expected(f"{number:03d}" for number in range(9))
    hard, soft = (row for row in rows if row.bad)
    assert (hard.key, hard.bad) == ("hard", "tar_link") and "--hard-dereference" in hard.detail
    assert (soft.key, soft.bad) == ("soft", "tar_link") and "tar --dereference" in soft.detail
    assert len(pairs(read(gnu_tar(folder, "--sort=name", "--hard-dereference", "--dereference", ".")))) == 11


@pytest.mark.parametrize("kind", ["gnu", "posix"])
def test_sparse_files_say_what_they_are(folder: Path, kind: str) -> None:
    for name in ("004.jpg", "006.txt"):
        with (folder / name).open("wb") as file:
            for at in range(6):  # an old GNU header has room for four stretches
                file.seek(at * 1_000_000)
                file.write(b"stretch")
    rows = read(gnu_tar(folder, "--sort=name", "--sparse", f"--format={kind}", "."))
    assert [(row.key, row.bad) for row in rows if row.bad] == [("004", "tar_sparse"), ("006", "tar_sparse")]
    assert pairs(rows) == expected(f"{number:03d}" for number in range(9) if number not in (4, 6))


@pytest.mark.parametrize("parts", [1, 2, 5, 17])
def test_hidden_and_foreign_files_are_counted_and_nobodys(tmp_path: Path, parts: int) -> None:
    names = ["__MACOSX/._000.jpg", *both(["000", "001"]), "._002.jpg", *both(["002", "@eaDir/003", "004"]), "._9.txt"]
    rows = read(pack(tmp_path / "a.tar", names), parts)
    assert pairs(rows) == expected(["000", "001", "002", "004"]) and len(rows) == 4
    assert [row.notes for row in rows] == [("foreign_file",) * count for count in (1, 1, 2, 1)]
