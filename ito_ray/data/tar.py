"""Reading a tar of samples that may be damaged, whole or in pieces.

A tar has no index, so it is cut by bytes, like Hadoop's input splits. Consecutive members of one key are a *run*. Let
r(x) be the run of the first member whose header starts at or after byte x. The piece [S, E) owns the runs after r(S) up
to and with r(E); the first piece owns run 0 too. Two neighbours agree on r(x) without talking, so that every run
belongs to exactly one piece. Damage belongs to the owner of the run before it.
"""

from __future__ import annotations

import gzip
import io
import tempfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from ito_ray.data.file_kinds import IMAGE_EXTENSIONS
from ito_ray.data.tar_layout import Layout, has_dots
from ito_ray.data.tar_members import (
    BLOCK,
    TEXT_EXTENSIONS,
    Damage,
    Foreign,
    Member,
    Source,
    Walk,
)

_LOOK_BACK = 64 << 10
"""A piece starts this much early, so that a long name whose header lies just before its start is known."""
_CHUNK = 256 << 10
_GZIP = b"\x1f\x8b"
_APART = "the members of a sample are not next to each other: pack again with tar --sort=name"


@dataclass(frozen=True, slots=True)
class TarSample:
    """Members of one sample by extension, or what went wrong (`bad`: a reason of rows.py, `detail`: free text)."""

    key: str
    members: dict[str, bytes]
    bad: str | None = None
    detail: str = ""
    lacking: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Reason and detail of members that are there and cannot be had, by extension; "" for all that is missing."""
    notes: tuple[str, ...] = ()
    """Where the key ends, once for each member whose name has several dots, so that there are two readings; and each
    hidden or foreign file that stands after the sample, or before the first one."""


@dataclass(slots=True)
class _Group:
    """One sample in the making. `before`, `inside`, `after`: damage met around its members."""

    key: str | None
    last: int = 0
    members: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, tuple[str, str]] = field(default_factory=dict)
    dotted: int = 0
    foreign: int = 0
    before: list[Damage] = field(default_factory=list)
    inside: list[Damage] = field(default_factory=list)
    after: list[Damage] = field(default_factory=list)

    @property
    def kinds(self) -> frozenset[bool]:
        """True: it has an image; False: something that may hold captions or a class."""
        endings = {name.rpartition(".")[2] for name in self.members}
        found = (True, IMAGE_EXTENSIONS), (False, TEXT_EXTENSIONS)
        return frozenset(kind for kind, known in found if not endings.isdisjoint(known))

    @property
    def intact(self) -> bool:
        """Has an image and a text; the end of the archive (key None) lacks nothing."""
        return self.key is None or len(self.kinds) == 2

    def add(self, event: Member, extension: str) -> None:
        """Take one more member."""
        if event.fault:
            self.faults[extension] = event.fault
        else:
            self.members[extension] = event.data
        self.dotted += has_dots(event.name)
        self.last = event.at


def read_tar(file: BinaryIO, part: int, parts: int, layout: Layout | None = None) -> Iterator[TarSample]:
    """Samples of piece `part` of `parts`, in the file's order; damage comes as samples with `bad` set.

    Args:
        file: seekable; read in large chunks from the piece's start. One that is packed by gzip is unpacked first.
        layout: what is known of the archive before; what is found out is noted in it.
    """
    layout = layout or Layout()
    size = file.seek(0, io.SEEK_END)
    start, end = (_boundary(size, cut, parts) for cut in (part, part + 1))
    source = Source(file, max(0, start - _LOOK_BACK), end)
    walk = Walk(source, size, start, None if part == 0 else end)
    owned = part == 0
    skipped: str | None = None
    previous = _Group(None)
    past_end = False
    seen: dict[str, frozenset[bool]] = {}
    for group in _groups(iter(walk), file, layout):
        if not walk.met and _begins_with(file, _GZIP):
            with unpack(file) as archive:
                if archive.tell():
                    yield from read_tar(archive, part, parts, layout)
                    return
        ours, new_run = owned, group.key != previous.key
        if new_run:
            if not owned and skipped is None and part:
                skipped = group.key
            else:
                owned = not past_end and group.key is not None
        if ours and previous.intact and group.intact:
            yield from _rows(group.before, file, layout)
        if new_run and past_end:
            return
        if owned and group.key is not None:
            yield _sample(group, group.key, seen, file, layout)
            if group.intact:
                yield from _rows(group.inside, file, layout)
        past_end = past_end or (part + 1 < parts and group.last >= end)
        previous = group


def unpack(file: BinaryIO, *, most: int | None = None) -> BinaryIO:
    """The unpacked bytes of a gzip file, up to its end, to damage, or to `most`, in a nameless file on disk.

    A compressed tar cannot be read from the middle, so every piece of it costs unpacking it whole.
    """
    unpacked = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115  # the caller closes it
    packed = gzip.GzipFile(fileobj=file)
    try:
        while (most is None or unpacked.tell() < most) and (chunk := packed.read1(_CHUNK)):
            unpacked.write(chunk)
    except (zlib.error, EOFError, gzip.BadGzipFile):
        pass  # the reader finds the tar cut here, and says so
    return unpacked


def mean_sample_bytes(
    file: BinaryIO, layout: Layout | None = None, *, most: int = 16 << 20, samples: int = 64
) -> float | None:
    """Bytes from one sample's first header to the next one's, averaged over the head of the file; None if no sample."""
    layout = layout or Layout()
    size = file.seek(0, io.SEEK_END)
    found, first, last = 0, 0, 0
    key: str | None = None
    for event in Walk(Source(file, 0, most), size, names_only=True):
        if not isinstance(event, Member) or layout.split(event.name, file)[0] == key:
            continue
        key = layout.split(event.name, file)[0]
        found, first, last = found + 1, first if found else event.at, event.at
        if found > samples or event.at > most:
            break
    if found == 0:
        return None
    return (last - first) / (found - 1) if found > 1 else float(size)


def _boundary(size: int, cut: int, parts: int) -> int:
    return size if cut == parts else size * cut // parts // BLOCK * BLOCK


def _begins_with(file: BinaryIO, magic: bytes) -> bool:
    file.seek(0)
    head = file.read(len(magic))
    file.seek(0)
    return head == magic


def _rows(damages: list[Damage], file: BinaryIO, layout: Layout) -> Iterator[TarSample]:
    for damage in damages:
        key = layout.split(damage.name, file)[0] if damage.name else ""
        yield TarSample(key, {}, damage.reason, damage.detail)


def _sample(group: _Group, key: str, seen: dict[str, frozenset[bool]], file: BinaryIO, layout: Layout) -> TarSample:
    touched = [*group.before, *group.inside, *group.after]
    if touched and not group.intact:
        return TarSample(key, {}, touched[0].reason, touched[0].detail)
    lacking = dict(group.faults)
    if not group.intact and not lacking and layout.is_unsorted(file):
        lacking[""] = ("tar_unsorted", _APART)
    if key in seen:
        again = ("duplicate_key", "an earlier sample of the shard has this key")
        apart = ("tar_unsorted", _APART) if group.kinds and not group.kinds & seen[key] else again
        reason, detail = next(iter(group.faults.values()), apart)
        return TarSample(key, {}, reason, detail)
    seen[key] = group.kinds
    if not layout.given and (several := _ambiguous(group.members)):
        return TarSample(key, {}, "ambiguous_members", several)
    notes = (f"key_to_{layout.rule}",) * group.dotted + ("foreign_file",) * group.foreign
    return TarSample(key, group.members, lacking=lacking, notes=notes)


def _ambiguous(members: Collection[str]) -> str:
    """Says so when several images and several texts have one key, and no `jpg` or `txt` alone is the sample's own."""
    images, texts = (
        [name for name in members if name.rpartition(".")[2] in known] for known in (IMAGE_EXTENSIONS, TEXT_EXTENSIONS)
    )
    if min(len(images), len(texts)) < 2 or not {*images, *texts}.isdisjoint((*IMAGE_EXTENSIONS, *TEXT_EXTENSIONS)):
        return ""
    return f"{', '.join(images)} and {', '.join(texts)}: which belong together? Give data.columns.key_ends"[:200]


def _groups(walk: Iterator[Member | Foreign | Damage], file: BinaryIO, layout: Layout) -> Iterator[_Group]:
    """Members gathered by key; the same extension twice begins a new sample. Ends with a group of key None."""
    group = _Group(None)
    pending: list[Damage] = []
    foreign = 0
    for event in walk:
        if isinstance(event, Damage):
            pending.append(event)
            continue
        if isinstance(event, Foreign):
            foreign += 1
            group.foreign += group.key is not None
            continue
        key, extension = layout.split(event.name, file)
        if key == group.key and extension not in group.members and extension not in group.faults:
            group.inside += pending
        else:
            if group.key is not None:
                group.after = pending
                yield group
            group = _Group(key, before=pending, foreign=foreign if group.key is None else 0)
        group.add(event, extension)
        pending = []
    if group.key is not None:
        group.after = pending
        yield group
    yield _Group(None, before=pending)
