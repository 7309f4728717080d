"""Folders that CLIP_benchmark reads as WebDataset (https://github.com/LAION-AI/CLIP_benchmark).

Beside the splits (`test/0.tar`, …, `test/nshards.txt`) lie `classnames.txt` and prompts, or `dataset_type.txt`. A class
is a number, its name is the line of that number; a retrieval set has one caption a line in each `.txt`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ito_ray.config.schema import KeyEnds
from ito_ray.data.captions import cleaned
from ito_ray.data.heldout import whole
from ito_ray.data.rows import BadSample, Row, cause
from ito_ray.data.shards import Shard, file_name, list_shards, open_shard
from ito_ray.data.tar import TarSample, read_tar
from ito_ray.data.tar_layout import Layout
from ito_ray.data.walk import is_file, is_folder
from ito_ray.errors import DataError

CLASSNAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
LABEL = "cls"
"""The member, and the entry of a row's `meta`, with the number of the class."""
_TYPE, _COUNT, _SPLIT = "dataset_type.txt", "nshards.txt", "test"
_IMAGES = ("webp", "png", "jpg", "jpeg")
"""In the order in which CLIP_benchmark looks for them."""
Kind = Literal["classification", "retrieval"]


@dataclass(frozen=True)
class BenchmarkSource:
    """One piece a tar."""

    shards: tuple[Shard, ...]
    kind: Kind
    field: str
    """The setting that they come from, for messages."""
    key_ends: KeyEnds = "auto"

    @property
    def pieces(self) -> int:
        return len(self.shards)

    def rows(self, piece: int) -> Iterator[Row]:
        url = self.shards[piece].url
        return whole(self._rows(url), url, self.field)

    def files(self) -> list[tuple[str, int]]:
        return [(file_name(one.url), one.size) for one in self.shards]

    def addresses(self) -> frozenset[str]:
        return frozenset(one.url for one in self.shards)

    def _rows(self, url: str) -> Iterator[Row]:
        with open_shard(url) as file:
            for sample in read_tar(file, 0, 1, Layout(None if self.key_ends == "auto" else self.key_ends)):
                yield _row(sample, self.kind, url)


@dataclass(frozen=True)
class Benchmark:
    """One split of such a folder."""

    root: Path
    split: Path

    def open(self, kind: Kind, field: str, key_ends: KeyEnds) -> BenchmarkSource:
        """Its tars.

        Raises:
            DataError: naming `field`, when the set is of another kind, or tars are missing.
        """
        found = self._read(_TYPE, self.root).lower() or "classification"
        if found != kind:
            options = {"retrieval": "data.heldout (--heldout)", "classification": "eval.zero_shot (--zero-shot)"}
            advice = f"give it to {options[found]}" if found in options else "such sets cannot be measured here"
            raise DataError(f"{field}: {self.root / _TYPE} says that this is a {found} set: {advice}.")
        count = self._read(_COUNT, self.split)
        tars = [str(self.split / f"{number}.tar") for number in range(int(count))] if count.isdecimal() else []
        return BenchmarkSource(list_shards(tars or (str(self.split),), field=field), kind, field, key_ends)

    def _read(self, name: str, folder: Path) -> str:
        try:
            return (folder / name).read_text("utf-8-sig").strip()
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{folder / name} cannot be read: {error}.") from error


def find(path: Path, field: str) -> Benchmark | None:
    """The split at `path`, or the only one in it, else `test`; None when it is no such folder.

    Raises:
        DataError: naming `field`, when there are several splits and none is called test.
    """
    if _is_split(path) and _is_root(path.parent):
        return Benchmark(path.parent, path)
    if not is_folder(path) or not _is_root(path):
        return None
    splits = [one for one in sorted(path.iterdir()) if _is_split(one)]
    chosen = [one for one in splits if one.name == _SPLIT or len(splits) == 1]
    if splits and not chosen:
        raise DataError(f"{field}: {path} has the splits {', '.join(one.name for one in splits)}: give one of them.")
    return Benchmark(path, chosen[0]) if chosen else None


def _is_root(path: Path) -> bool:
    return any(is_file(path / name) for name in (CLASSNAMES, _TYPE))


def _is_split(path: Path) -> bool:
    return is_folder(path) and any(is_file(path / name) for name in (_COUNT, "0.tar"))


def _row(sample: TarSample, kind: Kind, url: str) -> Row:
    try:
        if sample.bad:
            raise BadSample(sample.bad, sample.detail)
        image = next((sample.members[name] for name in _IMAGES if sample.members.get(name)), None)
        if not image:
            raise BadSample("missing_image", f"found only {sorted(sample.members)}")
        if kind == "retrieval":
            captions, notes = _captions(sample.members.get("txt", b""))
            return Row(sample.key, image, captions, url=url, notes=notes)
        number = _number(sample.members.get(LABEL, b""))
        return Row(sample.key, image, (number,), {LABEL: number}, url=url)
    except BadSample as error:
        reason, detail = cause(sample, error)
        return Row(sample.key, None, (), bad=reason, detail=detail, url=url)


def _number(member: bytes) -> str:
    label = member.decode("ascii", "replace").strip()
    if not label.isdecimal():
        raise BadSample("missing_class", f"{LABEL} holds {label[:40]!r}, not a number" if label else f"no {LABEL}")
    return str(int(label))


def _captions(text: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Every line is a caption, also one that comes twice: both are asked for. And why lines were left out."""
    lines = [cleaned(line) for line in text.decode("utf-8-sig", "surrogateescape").splitlines()]
    kept = tuple(caption for caption, fault in lines if caption and not fault)
    reasons = [fault for _, fault in lines if fault]
    if not kept:
        raise BadSample(*(reasons[0] if reasons else ("empty_caption" if text else "missing_caption", "")))
    return kept, tuple(reason for reason, _ in reasons)
