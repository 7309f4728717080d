"""A folder of `name.jpg` with `name.txt` or `name.jpg.txt`, and COCO's captions with a folder of pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ito_ray.data.file_kinds import PICTURES
from ito_ray.data.prepare.listing import Listed
from ito_ray.data.prepare.source import plain_meta
from ito_ray.data.prepare.table_text import TableText
from ito_ray.data.walk import PassedOver, is_file, is_folder, walk
from ito_ray.errors import DataError

_SCALARS = str | int | float | bool


def list_pairs(folder: Path) -> tuple[list[Listed], dict[str, int], str]:
    """Samples by path, what else was met, and sizes and times of all files, by which changes are noticed.

    A caption file without a picture is an input too, and a bad one.

    Raises:
        DataError: no folder, or no picture in it.
    """
    if not is_folder(folder):
        raise DataError(f"There is no folder {folder}: give one that holds name.jpg and name.txt side by side.")
    texts: dict[str, str] = {}
    pictures: dict[str, str] = {}
    salt: list[str] = []
    others = 0
    passed = PassedOver()
    for entry in files_below(folder, passed):
        path = Path(entry.path).relative_to(folder.absolute())
        stem, ending = str(path.with_suffix("")), path.suffix
        if ending.lower() == ".txt":
            texts[stem] = entry.path
        elif ending.lower() in PICTURES:
            pictures[str(path)] = entry.path
        else:
            others += 1
            continue
        salt.append(f"{entry.path} {_state(entry)}")
    passed.report(str(folder))
    if not pictures:
        raise DataError(f"{folder} holds no picture ({', '.join(PICTURES)}): {len(texts)} .txt, {others} other files.")
    listed: list[Listed] = []
    used: set[str] = set()
    for name, picture in pictures.items():
        stem = str(Path(name).with_suffix(""))
        own = stem if stem in texts else name
        used.add(own)
        if own in texts:
            listed.append(Listed(stem, picture, text=texts[own]))
        else:
            listed.append(Listed(stem, picture, bad="missing_caption", detail=f"no file {stem}.txt"))
    listed += [
        Listed(stem, texts[stem], bad="missing_image", detail=f"only {stem}.txt is there")
        for stem in sorted(texts.keys() - used)
    ]
    return listed, {"other_files": others, **passed.notes}, "\n".join(salt)


def files_below(folder: Path, passed: PassedOver) -> Iterator[os.DirEntry[str]]:
    """`walk` from the absolute folder. Raises DataError when it cannot be listed."""
    try:
        yield from walk(folder.absolute(), passed)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}. Check its permissions.") from error


def _state(entry: os.DirEntry[str]) -> str:
    """Size and time of the file, or of a link that leads nowhere."""
    try:
        status = entry.stat()
    except OSError:
        status = entry.stat(follow_symlinks=False)
    return f"{status.st_size} {status.st_mtime_ns}"


def list_coco(annotations: Path, images: Path) -> tuple[list[Listed], dict[str, int]]:
    """Samples in the order of COCO's `images`, each with all its captions; the key is the image's id.

    Raises:
        DataError: the file is missing or not COCO's captions, or `images` is no folder.
    """
    if not is_folder(images):
        raise DataError(
            f"--images {images} is no folder: give the one that the file names in {annotations} start from."
        )
    document = _json(annotations)
    lists = {name: document.get(name) for name in ("images", "annotations")}
    if not all(isinstance(value, list) and value for value in lists.values()):
        raise DataError(
            f"{annotations} needs the lists images and annotations, which must not be empty: it has "
            f"{', '.join(document) or 'nothing'}."
        )
    sample: dict[Any, Listed] = {}
    listed: list[Listed] = []
    for number, image in enumerate(lists["images"] or []):
        values = image if isinstance(image, dict) else {}
        name, identity = values.get("file_name"), values.get("id")
        if not isinstance(name, str) or not isinstance(identity, int | str | float):
            listed.append(Listed(f"images[{number}]", bad="bad_row", detail="id or file_name is missing"))
            continue
        meta = plain_meta({key: value for key, value in values.items() if key != "id" and isinstance(value, _SCALARS)})
        entry = Listed(str(identity), str(images.absolute() / name), meta=meta)
        sample.setdefault(identity, entry)
        listed.append(entry)
    captions, fields = 0, set[str]()
    for number, annotation in enumerate(lists["annotations"] or []):
        values = annotation if isinstance(annotation, dict) else {}
        fields |= values.keys()
        text, identity = values.get("caption"), values.get("image_id")
        if not isinstance(text, str):
            listed.append(Listed(f"annotations[{number}]", bad="bad_row", detail="caption is missing"))
        elif not isinstance(identity, int | str | float) or (found := sample.get(identity)) is None:
            detail = f"there is no image {identity!r}"[:200]
            listed.append(Listed(f"annotations[{number}]", bad="annotation_without_image", detail=detail))
        else:
            captions += 1
            found.captions.append(text)
    if not captions and "caption" not in fields:
        there = ", ".join(sorted(fields)) or "nothing"
        raise DataError(
            f"The annotations in {annotations} have no caption, only {there}: give the file captions_*.json."
        )
    return listed, {"annotations": len(lists["annotations"] or [])}


def _json(path: Path) -> dict[str, Any]:
    if not is_file(path):
        raise DataError(f"There is no file {path}: give COCO's captions_*.json.")
    try:
        document = json.loads(TableText.open(path).read())
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not JSON: {str(error)[:200]}.") from error
    if not isinstance(document, dict):
        raise DataError(f"{path} holds a {type(document).__name__}, COCO's annotations are an object.")
    return document
