"""The tar reader: equal to tarfile on sound archives, whole in pieces, and losing nothing but what is damaged."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ito_ray.data.tar import TarSample, mean_sample_bytes, read_tar
from tests.data.makers import damage, good, good_tar, write_tar

Found = list[tuple[str, str | None]]


def _whole(content: bytes) -> list[TarSample]:
    return list(read_tar(io.BytesIO(content), 0, 1))


def _brief(samples: list[TarSample]) -> Found:
    return [(sample.key, sample.bad) for sample in samples]


def _in_pieces(content: bytes, parts: int) -> list[TarSample]:
    return [sample for part in range(parts) for sample in read_tar(io.BytesIO(content), part, parts)]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_equals_tarfile(tmp_path: Path, kind: int) -> None:
    long = "folder/" + "long" * 20 + "/" + "name" * 15
    samples = [("a", good(1)), ("./b/a", good(2)), (long, good(3)), ("ümlaut", {"jpg": b"x" * 512, "json": b"{}"})]
    write_tar(tmp_path / "a.tar", samples, kind)
    found = _whole((tmp_path / "a.tar").read_bytes())
    assert [(sample.key, sample.members, sample.bad) for sample in found] == [
        (key.removeprefix("./"), members, None) for key, members in samples
    ]


def test_grouping_by_the_first_dot_of_the_base_name(tmp_path: Path) -> None:
    names = ["v1.0/a.jpg", "v1.0/a.final.txt", "v1.0/.hidden.jpg", "v1.0/noextension", "v1.0/b.JPG"]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(_directory("v1.0"))
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    assert [(sample.key, list(sample.members)) for sample in _whole((tmp_path / "a.tar").read_bytes())] == [
        ("v1.0/a", ["jpg", "final.txt"]),
        ("v1.0/b", ["jpg"]),
    ]


def _directory(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=12),
    parts=st.integers(1, 40),
    kind=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    stem=st.sampled_from(["s", "long/" * 40]),
)
def test_pieces_are_the_whole(tmp_path: Path, sizes: list[int], parts: int, kind: int, stem: str) -> None:
    stem = stem if kind != tarfile.USTAR_FORMAT else "s"
    samples = [(f"{stem}{i}", {"jpg": bytes([i]) * size, "txt": b"caption"}) for i, size in enumerate(sizes)]
    write_tar(tmp_path / "a.tar", samples, kind)
    content = (tmp_path / "a.tar").read_bytes()
    assert [(sample.key, sample.members) for sample in _in_pieces(content, parts)] == samples


def test_pieces_larger_than_the_look_back(tmp_path: Path) -> None:
    samples = [(f"long/{'x' * 150}{i}", {"jpg": bytes([i + 1]) * 150_000, "txt": b"caption"}) for i in range(6)]
    write_tar(tmp_path / "a.tar", samples)
    content = (tmp_path / "a.tar").read_bytes()
    for parts in (2, 3, 5, 11):
        assert [(sample.key, sample.members) for sample in _in_pieces(content, parts)] == samples


def test_no_piece_reads_far_beyond_itself(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [(f"s{i}", {"jpg": b"x" * 50_000, "txt": b"caption"}) for i in range(200)])
    content = (tmp_path / "a.tar").read_bytes()

    class Counting(io.BytesIO):
        read_bytes = 0

        def read(self, count: int | None = -1) -> bytes:
            data = super().read(count)
            Counting.read_bytes += len(data)
            return data

    assert len(list(read_tar(Counting(content), 3, 10))) == 20
    assert Counting.read_bytes < len(content) / 10 + (1 << 20)


@pytest.mark.parametrize("member", range(12))
def test_a_damaged_header_costs_one_sample(tmp_path: Path, member: int) -> None:
    """And the pieces agree with the whole on what was lost, whatever the cut."""
    path = tmp_path / "a.tar"
    damage(path, good_tar(path, 6)[member])
    content = path.read_bytes()
    found = _whole(content)
    lost = member // 2
    assert [sample.key for sample in found if sample.bad is None] == [f"s{i:03d}" for i in range(6) if i != lost]
    assert {sample.bad for sample in found if sample.bad} == {"tar_damaged"}
    assert found[lost].key == f"s{lost:03d}"
    for parts in range(2, 30):
        assert _brief(_in_pieces(content, parts)) == _brief(found)


def test_damage_between_intact_samples_is_a_row_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    offsets = write_tar(path, [("a", good(0)), ("b", {"jpg": b"x"}), ("c", good(1))])
    damage(path, offsets[2])
    expected: Found = [("a", None), ("", "tar_damaged"), ("c", None)]
    assert _brief(_whole(path.read_bytes())) == expected
    for parts in range(2, 30):
        assert _brief(_in_pieces(path.read_bytes(), parts)) == expected


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), parts=st.integers(2, 12))
def test_any_damage_never_raises_and_pieces_agree(tmp_path: Path, data: st.DataObject, parts: int) -> None:
    path = tmp_path / "a.tar"
    good_tar(path, 8)
    size = path.stat().st_size
    for _ in range(data.draw(st.integers(1, 4))):
        damage(path, data.draw(st.integers(0, size - 1)), data.draw(st.binary(min_size=1, max_size=700)))
    content = path.read_bytes()[: data.draw(st.sampled_from([size, size // 2, size // 3]))]
    assert sorted(_brief(_in_pieces(content, parts)), key=str) == sorted(_brief(_whole(content)), key=str)


@pytest.mark.parametrize("cut", [0.2, 0.35, 0.5, 0.77, 0.999])
def test_truncation_keeps_what_came_before(tmp_path: Path, cut: float) -> None:
    path = tmp_path / "a.tar"
    offsets = good_tar(path, 10)
    last = offsets[-1] + 1024
    end = int(last * cut)
    content = path.read_bytes()[:end]
    whole = [i for i in range(10) if offsets[2 * i + 1] + 512 + len(good(i)["txt"]) <= end]
    found = _whole(content)
    assert [sample.key for sample in found if sample.bad is None] == [f"s{i:03d}" for i in whole]
    assert [sample.bad for sample in found if sample.bad] == ["tar_truncated"]
    for parts in range(2, 20):
        assert _brief(_in_pieces(content, parts)) == _brief(found)


def test_missing_end_mark_is_reported_and_costs_nothing(tmp_path: Path) -> None:
    offsets = good_tar(tmp_path / "a.tar", 3)
    found = _brief(_whole((tmp_path / "a.tar").read_bytes()[: offsets[-1] + 1024]))
    assert found == [("s000", None), ("s001", None), ("s002", None), ("", "tar_truncated")]


def test_archives_one_after_the_other_are_all_read(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a", good(0))])
    write_tar(tmp_path / "b.tar", [("b", good(1))])
    content = (tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes()
    for parts in range(1, 9):
        assert _brief(_in_pieces(content, parts)) == [("a", None), ("b", None)]


@pytest.mark.parametrize("parts", [1, 2, 7])
@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"", "no valid header in 0 bytes"),
        (b"short", "no valid header in 5 bytes"),
        (b"<html>404</html>" * 2000, "no valid header"),
        (b"\x1f\x8b" + b"z" * 5000, "gzip data"),
        (b"BZh91AY&SY" + b"z" * 20, "bzip2 data"),
        (b"\x28\xb5\x2f\xfd" + b"z" * 5000, "zstd data"),
        (b"PK\x03\x04" + b"z" * 5000, "a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html>" + b"z" * 5000, "an HTML page"),
        (bytes(50_000), "no valid header"),
    ],
)
def test_not_a_tar(content: bytes, detail: str, parts: int) -> None:
    (found,) = _in_pieces(content, parts)
    assert found.bad == "not_a_tar" and detail in found.detail


@pytest.mark.parametrize("parts", [1, 2, 7])
@pytest.mark.parametrize("count", [1, 30])
def test_gzip_under_a_plain_name_is_unpacked(tmp_path: Path, count: int, parts: int) -> None:
    good_tar(tmp_path / "a.tar", count)
    content = (tmp_path / "a.tar").read_bytes()
    assert _in_pieces(gzip.compress(content), parts) == _whole(content)


def _with_size(content: bytes, at: int, field: bytes) -> bytes:
    """The archive with another size in the header at `at`, whose checksum holds."""
    header = bytearray(content[at : at + 512])
    header[124:136] = field.ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:at] + bytes(header) + content[at + 512 :]


SIZES = {
    "more than the file": b"77777777777",
    "gigabytes": b"\x80" + (1 << 40).to_bytes(11, "big"),
    "more than a computer counts": b"\x80" + b"\xff" * 11,
    "negative": b"\xff" * 12,
    "negative octal": b"-0000000001",
    "no number": b"notanumber",
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kind", [b"0", b"L", b"x"])
@pytest.mark.parametrize("parts", [1, 2, 9])
def test_an_absurd_size_costs_one_sample(tmp_path: Path, name: str, kind: bytes, parts: int) -> None:
    path = tmp_path / "a.tar"
    offsets = write_tar(path, [(f"s{number:03d}", good(number)) for number in range(9)], tarfile.GNU_FORMAT)
    content = bytearray(path.read_bytes())
    content[offsets[8] + 156 : offsets[8] + 157] = kind
    rows = _in_pieces(_with_size(bytes(content), offsets[8], SIZES[name]), parts)
    assert [row.key for row in rows if row.bad is None] == [f"s{number:03d}" for number in range(9) if number != 4]
    assert {row.bad for row in rows if row.bad} == {"tar_damaged"}


@pytest.mark.parametrize("size", [b"9" * 5000, b"-5", b"1" + b"0" * 19])
def test_absurd_numbers_in_a_pax_header(tmp_path: Path, size: bytes) -> None:
    record = b" size=" + size + b"\n"
    record = str(len(record) + 4).encode() + record
    for data in (record, b"9" * 5000 + b" path=a\n", b"0 path=a\n", b"\xff\xfe"):
        header = tarfile.TarInfo("PaxHeader")
        header.type, header.size = tarfile.XHDTYPE, len(data)
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.addfile(header, io.BytesIO(data))
        write_tar(tmp_path / "b.tar", [(f"s{number}", good(number)) for number in range(3)])
        content = (tmp_path / "a.tar").read_bytes()[: 512 + -(-len(data) // 512) * 512]
        rows = _whole(content + (tmp_path / "b.tar").read_bytes())
        assert [row.key for row in rows if row.bad is None][-2:] == ["s1", "s2"]


def test_an_empty_archive_is_sound(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [])
    assert _whole((tmp_path / "a.tar").read_bytes()) == []


def test_duplicate_keys_keep_the_first(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a", good(0)), ("b", good(1)), ("a", good(2)), ("c", good(3)), ("c", good(4))])
    found = _whole((tmp_path / "a.tar").read_bytes())
    duplicate = "duplicate_key"
    assert _brief(found) == [("a", None), ("b", None), ("a", duplicate), ("c", None), ("c", duplicate)]
    assert found[0].members == good(0) and found[3].members == good(3)


def test_mean_sample_bytes(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [(f"s{i}", {"jpg": b"x" * 1000, "txt": b"c"}) for i in range(100)])
    with (tmp_path / "a.tar").open("rb") as file:
        assert mean_sample_bytes(file) == 512 + 1024 + 512 + 512
    assert mean_sample_bytes(io.BytesIO(b"no tar" * 1000)) is None
