"""The demo data keeps its promises: splits apart, captions unique, runs equal."""

import dataclasses
import io
import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ito_ray.data.icons.names import clean_name, concept_of
from ito_ray.data.icons.render import MIN_CONTRAST, PALETTE, colour_pairs, contrast
from ito_ray.data.icons.splits import (
    TEMPLATES,
    Catalogue,
    IconPlan,
    Picture,
    Split,
    colour_caption,
    plan_pictures,
    read_catalogue,
    render_split,
)
from ito_ray.errors import ConfigError, DataError
from pipelines.prepare import Icons, main, prepare_icons


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return read_catalogue("shared")


@pytest.fixture(scope="module")
def pictures(catalogue: Catalogue) -> dict[Split, list[Picture]]:
    return plan_pictures(IconPlan(per_drawing=4), catalogue)


def _words(picture: Picture) -> set[str]:
    return set(picture.captions[0].split())


@pytest.mark.parametrize(
    ("raw", "style_words", "expected"),
    [
        ("account-circle-outline", {"outline"}, ("account circle", "outline")),
        ("bold", {"bold"}, ("bold", "")),
        ("arrow-bold-bold", {"bold"}, ("arrow", "bold bold")),
        ("fill-drip", {"fill"}, ("fill drip", "")),
    ],
)
def test_clean_name(raw: str, style_words: set[str], expected: tuple[str, str]) -> None:
    assert clean_name(raw, style_words) == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("circle arrow up", "arrow up circle"),
        ("account plus", "user add"),
        ("magnifying glass", "search"),
        ("eye off", "eye slash"),
    ],
)
def test_names_of_one_thing_share_a_concept(first: str, second: str) -> None:
    assert concept_of(first) == concept_of(second)


def test_different_things_keep_different_concepts() -> None:
    assert len({concept_of(name) for name in ("user", "users", "arrow up", "arrow down")}) == 4


def test_every_colour_pair_can_be_told_apart() -> None:
    pairs = colour_pairs()
    assert len(pairs) == len(set(pairs)) > 50
    assert min(contrast(PALETTE[front], PALETTE[back]) for front, back in pairs) > MIN_CONTRAST
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)


def test_the_unseen_artist_is_never_trained_on(catalogue: Catalogue, pictures: dict[Split, list[Picture]]) -> None:
    families = {item.drawing.family for item in pictures["train"] + pictures["heldout"]}
    assert families == {"codicon", "elusive", "mdi6", "phosphor", "remix"}
    assert {item.drawing.family for item in pictures["unseen_artist"]} == {"fontawesome"}


def test_classes_are_training_names(catalogue: Catalogue, pictures: dict[Split, list[Picture]]) -> None:
    trained = {caption for item in pictures["train"] for caption in item.captions}
    assert set(catalogue.classes) <= trained
    assert len(catalogue.classes) == len({concept_of(name) for name in catalogue.classes}) > 300
    assert {item.name for item in pictures["unseen_artist"]} == set(catalogue.classes)
    assert all(item.captions[0] == item.name for item in pictures["unseen_artist"])
    drawn = [item.drawing.id for item in pictures["unseen_artist"]]
    assert len(drawn) == len(set(drawn))


def test_templates_use_trained_words_only(pictures: dict[Split, list[Picture]]) -> None:
    known = {word for item in pictures["train"] for text in item.captions for word in text.split()}
    assert all(template.count("{}") == 1 for template in TEMPLATES)
    assert {word for template in TEMPLATES for word in template.split()} - {"{}"} <= known


def test_heldout_combinations_are_never_trained_on(pictures: dict[Split, list[Picture]]) -> None:
    def combinations(split: Split) -> set[tuple[str, str, str]]:
        return {(item.drawing.id, item.foreground, item.background) for item in pictures[split]}

    assert len(pictures["heldout"]) == 1500
    assert not combinations("heldout") & combinations("train")
    assert {item.drawing.id for item in pictures["heldout"]} <= {item.drawing.id for item in pictures["train"]}


def test_heldout_first_captions_have_one_right_picture(
    pictures: dict[Split, list[Picture]],
) -> None:
    captions = {item.captions[0] for item in pictures["heldout"]}
    meanings = {(concept_of(item.drawing.name), item.foreground, item.background) for item in pictures["heldout"]}
    assert len(captions) == len(meanings) == len(pictures["heldout"])
    for item in pictures["heldout"]:
        assert {item.foreground, item.background} <= _words(item)


def test_training_captions_are_name_colours_and_alternatives(
    catalogue: Catalogue, pictures: dict[Split, list[Picture]]
) -> None:
    for item in pictures["train"]:
        alternatives = set(catalogue.alternatives[concept_of(item.drawing.name)])
        first, coloured, *rest = item.captions
        assert first == item.drawing.name
        assert coloured in {colour_caption(name, item.foreground, item.background) for name in alternatives}
        assert sorted([first, *rest]) == sorted(alternatives)


def test_keys_are_unique_and_neighbours_differ(pictures: dict[Split, list[Picture]]) -> None:
    keys = [item.key for items in pictures.values() for item in items]
    assert len(keys) == len(set(keys))
    train = pictures["train"]
    same = sum(a.drawing.id == b.drawing.id for a, b in itertools.pairwise(train))
    assert same < len(train) / 500


def test_a_pool_changes_no_byte(pictures: dict[Split, list[Picture]]) -> None:
    plan = IconPlan(per_drawing=4)
    some = pictures["train"][:50]
    serial = list(render_split(some, plan))
    with ThreadPoolExecutor(2) as pool:
        assert list(render_split(some, plan, pool)) == serial


def test_pictures_show_both_colours(pictures: dict[Split, list[Picture]]) -> None:
    plan = IconPlan(per_drawing=4)
    for item, sample in zip(pictures["train"][:200], render_split(pictures["train"][:200], plan), strict=True):
        picture = Image.open(io.BytesIO(sample.image))
        assert (picture.mode, picture.size) == ("RGB", (64, 64))
        colours = np.asarray(picture, dtype=np.int64).reshape(-1, 3)
        for name in (item.foreground, item.background):
            nearest = np.abs(colours - PALETTE[name]).max(axis=1).min()
            assert nearest <= 48, (item, name)


def test_prepare_is_reproducible_and_a_rerun_does_nothing(
    tmp_path: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tenth of the drawings, chosen across families, keeps the test short.
    few = dataclasses.replace(catalogue, training=catalogue.training[::10])
    monkeypatch.setattr("pipelines.prepare.read_catalogue", lambda names: few)
    options = [Icons(tmp_path / run, per_drawing=1, heldout=50, size=24, format="both") for run in "ab"]
    assert [prepare_icons(option) for option in options] == [True, True]
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert {str(path.parent) for path in files} == {".", "train", "heldout", "unseen_artist"}
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    for split, entry in manifest["splits"].items():
        on_disk = {path.name for path in (tmp_path / "a" / split).iterdir()}
        assert on_disk == set(entry["shards"])
        tars = [count for name, count in entry["shards"].items() if name.endswith(".tar")]
        assert sum(tars) == entry["samples"]
    assert prepare_icons(options[0]) is False


def test_prepare_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not a folder made by prepare"):
        prepare_icons(Icons(tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_too_many_heldout_pairs_are_refused(catalogue: Catalogue) -> None:
    with pytest.raises(ConfigError, match="heldout is 100000"):
        plan_pictures(IconPlan(heldout=100_000), catalogue)


def test_the_command_line_reports_errors_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x"
    assert main(["icons", "--out", str(out), "--per-drawing", "0"]) == 2
    assert "error: per_drawing is 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_qt_is_not_imported() -> None:
    code = (
        "import sys; from ito_ray.data.icons.splits import read_catalogue; "
        "read_catalogue('shared'); "
        "sys.exit(any('qt' in name.lower() for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
