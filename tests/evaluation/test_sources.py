"""Own data in the forms that people have it, against the same data as shards."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ito_ray.config.evaluation import EvalConfig
from ito_ray.config.schema import Config, DataConfig
from ito_ray.errors import ConfigError, DataError
from ito_ray.evaluation.classes import read_class_table
from ito_ray.evaluation.evaluate import evaluate
from ito_ray.evaluation.sources import Labelled, ShardSource, open_labelled, open_pairs, read
from tests.evaluation.shapes import COLOURS, SHAPES, ShapeEncoder, draw, write_shape_shards

PER_CLASS = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 24 pictures as a folder a class, as tables, as pairs of files, and for CLIP_benchmark."""
    root = tmp_path_factory.mktemp("own")
    rows = [(c, s, i) for s in SHAPES for i, c in enumerate(list(COLOURS)[:PER_CLASS])]
    with (root / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "label"])
        for colour, shape, i in rows:
            (root / "folders" / shape).mkdir(parents=True, exist_ok=True)
            picture = root / "folders" / shape / f"{i}.png"
            draw(colour, shape, seed=i).save(picture)
            writer.writerow([str(picture.relative_to(root)), f"a {colour} {shape}", shape])
            (root / "pairs").mkdir(exist_ok=True)
            draw(colour, shape, seed=i).save(root / "pairs" / f"{shape}-{i}.png")
            (root / "pairs" / f"{shape}-{i}.txt").write_text(f"a {colour} {shape}", encoding="utf-8")
    table = pa.table(
        {
            "image": [f"folders/{s}/{i}.png" for _, s, i in rows],
            "caption": [f"a {c} {s}" for c, s, _ in rows],
            "label": [s for _, s, _ in rows],
        }
    )
    pq.write_table(table, root / "table.parquet")
    write_clip_benchmark(root / "benchmark", rows)
    return root


def write_clip_benchmark(folder: Path, rows: list[tuple[str, str, int]]) -> None:
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(SHAPES), encoding="utf-8")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\na black {c}\n", encoding="utf-8")
    (folder / "test" / "nshards.txt").write_text("1", encoding="utf-8")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for colour, shape, i in rows:
            out = io.BytesIO()
            draw(colour, shape, seed=i).save(out, "PNG")
            for name, content in (("png", out.getvalue()), ("cls", str(SHAPES.index(shape)).encode())):
                info = tarfile.TarInfo(f"{shape}-{i}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def labelled(path: Path, **changes: str) -> Labelled:
    cfg = Config(eval=EvalConfig(zero_shot=(str(path),), **changes))
    return open_labelled(cfg, cfg.eval.zero_shot, "eval.zero_shot")


@pytest.mark.parametrize("name", ["folders", "table.csv", "table.parquet", "benchmark"])
def test_classes_are_found_without_a_class_file(root: Path, name: str) -> None:
    changes = {"zero_shot_field": "label"} if name.startswith("table") else {}
    found = labelled(root / name, **changes)
    assert set(found.table.values()) == set(SHAPES)
    rows = list(read(found.source, limit=None, max_pixels=10**6))
    assert len(rows) == PER_CLASS * len(SHAPES)
    for row in rows:
        shape = found.table[str(row.meta[found.field])]
        number = row.key.split("/")[-1].split("-")[-1].removesuffix(".png")
        expected = draw(list(COLOURS)[int(number)], shape, seed=int(number))
        np.testing.assert_array_equal(np.asarray(row.image), np.asarray(expected))
    assert found.templates == (("a {}", "a black {}") if name == "benchmark" else ("{}",))
    if name == "benchmark":
        assert labelled(root / name / "test") == found


def test_the_numbers_do_not_depend_on_the_form(root: Path) -> None:
    found = []
    for name in ("folders", "table.csv", "table.parquet", "benchmark"):
        (root / "templates.txt").write_text("a {}\na black {}\n", encoding="utf-8")
        (root / "classes.txt").write_text("\n".join(SHAPES), encoding="utf-8")
        values = EvalConfig(
            zero_shot=(str(root / name),),
            zero_shot_field="label",
            classes=str(root / "classes.txt"),
            templates=str(root / "templates.txt"),
        )
        found.append(evaluate(ShapeEncoder(), Config(eval=values), evaluators=["zero_shot"]).metrics())
    assert all(one == found[0] for one in found)
    assert found[0]["zero_shot/images"] == 24


@pytest.mark.parametrize("name", ["table.csv", "table.parquet", "pairs"])
def test_pairs_from_tables_and_files(root: Path, name: str) -> None:
    source = open_pairs(Config(data=DataConfig(heldout=(str(root / name),))))
    rows = list(read(source, limit=None, max_pixels=10**6))
    assert len(rows) == 24
    assert sorted(row.captions[0] for row in rows)[0] == "a green bar"


def test_a_limit_takes_all_classes_of_a_folder(root: Path) -> None:
    found = labelled(root / "folders")
    rows = list(read(found.source, limit=len(SHAPES), max_pixels=10**6))
    assert {row.meta[found.field] for row in rows} == set(SHAPES)


def test_pieces_are_the_whole(root: Path, tmp_path: Path) -> None:
    write_shape_shards(tmp_path, 25, per_shard=10)
    for given in (tmp_path, root / "table.csv"):
        source = open_pairs(Config(data=DataConfig(heldout=(str(given),))))
        parts = [
            row.key for piece in range(source.pieces) for row in read(source, limit=None, max_pixels=10**6, piece=piece)
        ]
        assert parts == [row.key for row in read(source, limit=None, max_pixels=10**6)]
    assert isinstance(open_pairs(Config(data=DataConfig(heldout=(str(tmp_path),)))), ShardSource)


def test_a_class_file_may_say_what_the_samples_say(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("circle\tround thing\nbar\n", encoding="utf-8")
    assert read_class_table(str(path)) == {"circle": "round thing", "bar": "bar"}
    found = labelled(root / "folders", classes=str(path))
    assert found.table["circle"] == "round thing"
    path.write_text("a\tx\nb\tx\n", encoding="utf-8")
    assert read_class_table(str(path)) == {"a": "x", "b": "x"}
    path.write_text("a\tx\na\ty\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="'a' more than once"):
        read_class_table(str(path))


def test_underscores_of_folders_are_spaces_in_prompts(tmp_path: Path) -> None:
    for name in ("red_fox", "cat"):
        (tmp_path / name).mkdir()
        draw("red", "bar").save(tmp_path / name / "0.png")
    assert labelled(tmp_path).table == {"cat": "cat", "red_fox": "red fox"}


def test_classes_that_underscores_alone_tell_apart_stay_two(tmp_path: Path) -> None:
    draw("red", "bar").save(tmp_path / "0.png")
    draw("red", "bar").save(tmp_path / "1.png")
    path = tmp_path / "t.csv"
    path.write_text("image;class\n0.png;red_fox\n1.png;red fox\n", "utf-8")
    assert labelled(path).table == {"red fox": "red fox", "red_fox": "red_fox"}


def test_labels_of_tables_may_be_numbers_and_have_quoted_commas(tmp_path: Path) -> None:
    for number in range(3):
        draw("red", "bar", seed=number).save(tmp_path / f"{number}.png")
    rows = [{"image": f"{number}.png", "label": label} for number, label in enumerate((1, 1.0, 2.0))]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = labelled(tmp_path / "t.jsonl", zero_shot_field="label")
    pairs = list(read(found.source, limit=None, max_pixels=10**6))
    assert [pair.meta[found.field] for pair in pairs] == ["1", "1", "2"]
    assert found.table == {"1": "1", "2": "2"}
    (tmp_path / "t.csv").write_text('image,"label, long"\n0.png,"ice cream,  vanilla"\n1.png,tea\n', "utf-8")
    assert labelled(tmp_path / "t.csv", zero_shot_field="label, long").table == {
        "ice cream, vanilla": "ice cream, vanilla",
        "tea": "tea",
    }


def test_wrong_sources(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_shape_shards(tmp_path / "shards", 3)
    with pytest.raises(ConfigError, match=r"eval\.classes is empty, but eval\.zero_shot names shards"):
        labelled(tmp_path / "shards")
    classes = tmp_path / "c.txt"
    classes.write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"eval\.zero_shot: .*holds 0 files"):
        labelled(tmp_path / "empty", classes=str(classes))
    with pytest.raises(DataError, match=r"eval\.zero_shot: nothing matches"):
        labelled(tmp_path / "gone", classes=str(classes))
    (tmp_path / "t.csv").write_text("image,caption\na.png,a\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no column with the class: it has image, caption"):
        labelled(tmp_path / "t.csv")


def test_pictures_that_are_missing_are_counted(root: Path, tmp_path: Path) -> None:
    lines = [f"{root}/folders/{s}/{i}.png,{s}" for s in SHAPES for i in range(2)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["image,class", *lines, f"{root}/gone.png,bar"]) + "\n", encoding="utf-8")
    report = evaluate(ShapeEncoder(), Config(eval=EvalConfig(zero_shot=(str(path),))), evaluators=["zero_shot"])
    assert report.dropped == {"missing_file": 1}
    assert report.metrics()["zero_shot/images"] == 12
    assert json.loads(report.to_json())["dropped"] == {"missing_file": 1}


def test_hidden_and_foreign_folders_are_no_classes(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cat", "dog", ".ipynb_checkpoints", "@eaDir", "__MACOSX/cat", "cat/@eaDir", "dog/.ipynb_checkpoints"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        draw("red", "bar").save(tmp_path / name / "0.JPG", "JPEG")
    (tmp_path / "cat" / "._0.JPG").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "cat" / "note.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loose.jpg").write_bytes((tmp_path / "cat" / "0.JPG").read_bytes())
    (tmp_path / "dog" / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "dog" / "loop").symlink_to("..")
    with caplog.at_level("WARNING"):
        report = evaluate(ShapeEncoder(), Config(eval=EvalConfig(zero_shot=(str(tmp_path),))), evaluators=["zero_shot"])
    found = report.metrics()
    assert (found["zero_shot/images"], report.dropped) == (2, {"missing_file": 1})
    assert labelled(tmp_path).table == {"cat": "cat", "dog": "dog"}
    said = caplog.text
    assert "7 hidden or foreign files and folders (.ipynb_checkpoints, @eaDir, __MACOSX, …)" in said
    assert (
        "1 files that are no pictures (cat/note.txt)" in said and "1 pictures outside the folders (loose.jpg)" in said
    )
    assert "1 folders without pictures, which are no classes (empty)" in said
    assert "1 links back to a folder above them (dog/loop)" in said


def test_a_folder_of_hidden_pictures_is_none_of_pictures(tmp_path: Path) -> None:
    write_shape_shards(tmp_path, 6)
    (tmp_path / "@eaDir").mkdir()
    draw("red", "bar").save(tmp_path / "@eaDir" / "0.png")
    assert isinstance(open_pairs(Config(data=DataConfig(heldout=(str(tmp_path),)))), ShardSource)


@pytest.mark.parametrize(
    "name", ["x" * 300, "{" + ",".join("ab" * 90) + "}.csv", "a" * 5000 + ".parquet", "a\0b.csv", "l"]
)
def test_what_can_be_no_path_is_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "l").symlink_to("l")
    classes = tmp_path / "c.txt"
    classes.write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"data\.heldout|There is no table"):
        open_pairs(Config(data=DataConfig(heldout=(f"{tmp_path}/{name}",))))
    with pytest.raises(DataError, match=r"eval\.zero_shot|There is no table"):
        labelled(tmp_path / name, classes=str(classes))
