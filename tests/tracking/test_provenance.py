"""Data have one identity wherever they lie, in whatever form evaluation reads them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ito_ray.config.evaluation import EvalConfig
from ito_ray.config.schema import Config, DataConfig
from ito_ray.errors import DataError
from ito_ray.evaluation.subject import require_samples
from ito_ray.tracking.provenance import DatasetIdentity, dataset_identity, evaluation_sets
from ito_ray.tracking.run import dataset_input
from tests.data.makers import picture, write_tar

NAMES = ("cat", "dog")


def _shards(folder: Path) -> Config:
    write_tar(folder / "b.tar", [("k0", {"png": picture(0), "txt": b"a cat", "json": b'{"name": "cat"}'})])
    write_tar(folder / "a.tar", [("k1", {"png": picture(1), "txt": b"a dog", "json": b'{"name": "dog"}'})])
    (folder / "classes.txt").write_text("cat\ndog\n")
    return Config(data=DataConfig(heldout=(str(folder),)), eval=_zero_shot(folder, str(folder / "classes.txt")))


def _zero_shot(path: Path, classes: str = "") -> EvalConfig:
    return EvalConfig(zero_shot=(str(path),), classes=classes)


def _pictures(folder: Path) -> None:
    for number, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.png").write_bytes(picture(number))


def _table(folder: Path) -> Config:
    _pictures(folder)
    (folder / "t.csv").write_text("image,caption,class\n" + "".join(f"{n}/1.png,a {n},{n}\n" for n in NAMES))
    return Config(data=DataConfig(heldout=(str(folder / "t.csv"),)), eval=_zero_shot(folder / "t.csv"))


def _folders(folder: Path) -> Config:
    _pictures(folder)
    for name in NAMES:
        (folder / name / "1.txt").write_text(f"a {name}")
    return Config(data=DataConfig(heldout=(str(folder),)), eval=_zero_shot(folder))


def _benchmark(folder: Path) -> Config:
    folder.mkdir(exist_ok=True)
    (folder / "classnames.txt").write_text("cat\ndog\n")
    (folder / "test").mkdir()
    write_tar(folder / "test" / "0.tar", [(f"k{n}", {"png": picture(n), "cls": str(n).encode()}) for n in (0, 1)])
    return Config(eval=_zero_shot(folder))


KINDS = [_shards, _table, _folders, _benchmark]


def _sets(make: Callable[[Path], Config], folder: Path) -> dict[str, DatasetIdentity]:
    folder.mkdir(parents=True, exist_ok=True)
    return evaluation_sets(make(folder))


@pytest.mark.parametrize("make", KINDS)
def test_the_same_data_elsewhere_have_the_same_digest(make: Callable[[Path], Config], tmp_path: Path) -> None:
    here, there = _sets(make, tmp_path / "here"), _sets(make, tmp_path / "quite" / "elsewhere")
    assert here.keys() == ({"zero_shot"} if make is _benchmark else {"heldout", "zero_shot"})
    for kind, one in here.items():
        assert (one.digest, one.shards, one.bytes) == (there[kind].digest, there[kind].shards, there[kind].bytes)
        assert one.bytes > 0 and one.name == kind and len(one.digest) == 16
        assert dataset_input(one, "evaluation").dataset.digest == one.digest
    assert all(path.startswith(str(tmp_path / "here")) for one in here.values() for path in one.source)


@pytest.mark.parametrize("make", KINDS)
def test_data_that_changed_have_another(make: Callable[[Path], Config], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    cfg = make(tmp_path / "a")
    before = evaluation_sets(cfg)
    changed = next(path for path in sorted((tmp_path / "a").rglob("*")) if path.suffix in (".tar", ".png"))
    with changed.open("ab") as file:
        file.write(b"\0" * 512)
    after = evaluation_sets(cfg)
    assert all(
        after[kind].digest != one.digest and after[kind].bytes == one.bytes + 512 for kind, one in before.items()
    )


def test_a_picture_that_moves_to_another_class_is_another_set(tmp_path: Path) -> None:
    cfg = _folders(tmp_path)
    before = evaluation_sets(cfg)["zero_shot"].digest
    shutil.move(tmp_path / "cat" / "1.png", tmp_path / "dog" / "2.png")
    (tmp_path / "cat" / "3.png").write_bytes(picture(0))
    assert evaluation_sets(cfg)["zero_shot"].digest != before


def test_a_caption_of_the_same_length_is_another_set(tmp_path: Path) -> None:
    cfg = _table(tmp_path)
    before = evaluation_sets(cfg)["heldout"]
    table = tmp_path / "t.csv"
    table.write_text(table.read_text().replace("a cat", "a cow"))
    after = evaluation_sets(cfg)["heldout"]
    assert after.bytes == before.bytes and after.digest != before.digest


def test_shards_keep_the_digest_that_registered_versions_have(tmp_path: Path) -> None:
    cfg = _shards(tmp_path)
    pairs = sorted((name, (tmp_path / name).stat().st_size) for name in ("a.tar", "b.tar"))
    expected = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]
    assert {one.digest for one in evaluation_sets(cfg).values()} == {expected}
    assert dataset_identity("x", [], [(f"s3://b/{name}", size) for name, size in pairs]).digest == expected


def test_a_set_of_very_many_shards_fits_into_mlflow() -> None:
    patterns = [f"s3://bucket/a/rather/long/folder/{number:06d}.tar" for number in range(5000)]
    found = dataset_input(dataset_identity("n" * 900, patterns, [(one, 1) for one in patterns]), "training").dataset
    assert len(found.source) < 65_535 and len(found.name) == 500
    assert patterns[0] in found.source and "more" in found.source and '"shards": 5000' in str(found.profile)


@pytest.mark.parametrize("make", KINDS)
def test_sets_with_samples_are_let_pass(make: Callable[[Path], Config], tmp_path: Path) -> None:
    require_samples(make(tmp_path))


def test_sets_without_one_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    cfg = _table(tmp_path)
    (tmp_path / "other.txt").write_text("bird\nfish\n")
    other = cfg.model_copy(update={"eval": cfg.eval.model_copy(update={"classes": str(tmp_path / "other.txt")})})
    with pytest.raises(DataError, match=r"None of the 2 labelled samples.*\['cat', 'dog'\].*\['bird', 'fish'\]"):
        require_samples(other)
    for name in NAMES:
        (tmp_path / name / "1.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"data\.heldout gave no pair"):
        require_samples(cfg)
