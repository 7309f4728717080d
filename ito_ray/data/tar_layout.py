"""How a tar names and orders the members of its samples; found out from its content when there are two readings.

Where a key ends. WebDataset ends it at the first dot of the base name, so that a sample may have `000.seg.png` and
`000.cap.txt`. Files that people pack have dots in their names: `Screenshot 2024-05-01 at 10.07.jpg`. One rule holds for
a whole archive, found from its head, so that all its pieces agree:

- last dot, where more names up to the last dot have both an image and a text than there are samples that need members
  of several such names to have both;
- where there are neither: first dot, if what stands after it (`seg.png`) comes again in most samples;
- last dot, where the head has no such name: what belongs to every sample would be there.

With keys up to the last dot, an ending of two parts that most samples have (`a.1.jpg` with `a.1.jpg.txt`, or with
`a.1.seg.png`) is no part of the key.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import BinaryIO, Literal

from ito_ray.data.file_kinds import IMAGE_EXTENSIONS
from ito_ray.data.tar_members import TEXT_EXTENSIONS, Member, Source, Walk

Rule = Literal["first_dot", "last_dot"]
_HEAD_BYTES, _TAIL_BYTES = 8 << 20, 1 << 20
_LEAST_NAMES, _MOST_NAMES = 32, 512
"""Of the head, even where 32 members take more than `_HEAD_BYTES`."""


@dataclass
class Layout:
    """Of one archive; None is not known yet. A rule that is given is not looked for."""

    rule: Rule | None = None
    unsorted: bool | None = None
    compounds: frozenset[str] = frozenset()
    """Endings of two parts; found with the rule."""
    given: bool = field(init=False)
    """Whether somebody else has chosen the rule."""

    def __post_init__(self) -> None:
        self.given = self.rule is not None

    def split(self, name: str, file: BinaryIO) -> tuple[str, str]:
        """(key, extension in lower case) of a member."""
        if self.rule is None and has_dots(name):
            names = _head(file)[0]
            self.compounds = compound_endings(names)
            self.rule = where_keys_end(names, self.compounds)
        return split(name, self.rule or "first_dot", self.compounds)

    def is_unsorted(self, file: BinaryIO) -> bool:
        """Whether members of one sample stand apart, as after `tar` without --sort=name. Asked of incomplete ones."""
        if self.unsorted is None:
            head, whole = _head(file)
            names = head if whole else head + _tail(file)
            self.unsorted = stand_apart([self.split(name, file) for name in names], whole=whole)
        return self.unsorted


def has_dots(name: str) -> bool:
    """Whether the base name has several dots, so that there are two readings."""
    return name.rpartition("/")[2].count(".") > 1


def split(name: str, rule: Rule, compounds: frozenset[str] = frozenset()) -> tuple[str, str]:
    """(key, extension in lower case) at the first or last dot of the base name, or before one of `compounds`."""
    folder, slash, base = name.rpartition("/")
    if rule == "first_dot":
        stem, _, extension = base.partition(".")
    else:
        stem, _, extension = base.rpartition(".")
        shorter, _, part = stem.rpartition(".")
        if shorter and f"{part}.{extension}".lower() in compounds:
            stem, extension = shorter, f"{part}.{extension}"
    return folder + slash + stem, extension.lower()


def compound_endings(names: Sequence[str]) -> frozenset[str]:
    """Endings of two parts that most samples have beside another member, and that no pair is named by."""
    kinds: dict[str, set[str]] = defaultdict(set)
    """By the key up to the last dot."""
    longer: dict[str, dict[str, str]] = defaultdict(dict)
    """By the ending of two parts: the key up to the last dot, by the key before that ending."""
    for name in names:
        stem, ending = split(name, "last_dot")
        kinds[stem] |= _kind(ending)
        key, part = split(stem, "last_dot")
        if has_dots(name) and key:
            longer[f"{part}.{ending}"][key] = stem
    found = set()
    for ending, stems in longer.items():
        joined = [key for key, stem in stems.items() if key in kinds and len(kinds[stem]) < 2]
        if len(joined) == len(stems) and 2 * len(joined) > len(kinds.keys() - set(stems.values())):
            found.add(ending)
    return frozenset(found)


def where_keys_end(names: Sequence[str], compounds: frozenset[str] = frozenset()) -> Rule:
    """The rule that makes most of the names, in their order; see the file's docstring."""
    extensions: dict[str, set[str]] = defaultdict(set)
    """By the key up to the first dot: all that follow."""
    stems: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    """By the key up to the first dot, then by the key up to the last: kinds of members."""
    for name in names:
        key, extension = split(name, "first_dot")
        stem, ending = split(name, "last_dot", compounds)
        stems[key][stem] |= _kind(ending)
        extensions[key].add(extension)
    dotted = {key: own for key, own in extensions.items() if any("." in one for one in own)}
    pairs = sum(len(kinds) == 2 for key in dotted for stem, kinds in stems[key].items() if stem != key)
    joined = sum(
        all(len(kinds) < 2 for stem, kinds in stems[key].items() if stem != key)
        and len(set().union(*stems[key].values())) == 2
        for key in dotted
    )
    if pairs or joined:
        return "last_dot" if pairs >= joined else "first_dot"
    if len(dotted) < 2:
        endings = Counter(one.rpartition(".")[2] for own in dotted.values() for one in own)
        return "first_dot" if endings and max(endings.values()) == 1 else "last_dot"
    found = Counter(one for own in dotted.values() for one in own if "." in one)
    share = sum(count * count for count in found.values()) / sum(found.values()) / len(dotted)
    return "first_dot" if share > 0.5 else "last_dot"


def stand_apart(members: Sequence[tuple[str, str]], *, whole: bool) -> bool:
    """Whether most samples have their image in one place and their text in another.

    Args:
        members: (key, extension) in the archive's order.
        whole: all of the archive's, and not its head and tail only.
    """
    images, texts = Counter[str](), Counter[str]()
    complete = 0
    for key, group in groupby(members, key=lambda member: member[0]):
        kinds = set().union(*(_kind(extension) for _, extension in group))
        complete += len(kinds) == 2
        images[key] += kinds == {"image"}
        texts[key] += kinds == {"text"}
    if whole:
        return sum((images & texts).values()) > complete
    return min(images.total(), texts.total()) > complete


def _kind(extension: str) -> set[str]:
    last = extension.rpartition(".")[2]
    return {"image"} if last in IMAGE_EXTENSIONS else {"text"} if last in TEXT_EXTENSIONS else set()


def _head(file: BinaryIO) -> tuple[list[str], bool]:
    """The first names, and whether they are all."""
    size = file.seek(0, io.SEEK_END)
    names: list[str] = []
    for event in Walk(Source(file, 0, _HEAD_BYTES), size, names_only=True):
        if isinstance(event, Member):
            names.append(event.name)
            if size > _TAIL_BYTES and len(names) >= (_LEAST_NAMES if event.at > _HEAD_BYTES else _MOST_NAMES):
                return names, False
    return names, True


def _tail(file: BinaryIO) -> list[str]:
    """The last names."""
    size = file.seek(0, io.SEEK_END)
    start = max(0, size - _TAIL_BYTES)
    walk = Walk(Source(file, start, size), size, start, size, names_only=True)
    return [event.name for event in walk if isinstance(event, Member)]
