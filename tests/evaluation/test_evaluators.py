"""The evaluators by name, on drawn shapes; what they say is compared with the plainest way to say it."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix

from ito_ray.config.evaluation import EvalConfig
from ito_ray.config.schema import Config, DataConfig
from ito_ray.errors import ConfigError, DataError
from ito_ray.evaluation import probe, robustness
from ito_ray.evaluation.confusion import _shown, confusion, confusion_section, first_choice
from ito_ray.evaluation.embed import LabelledEmbeddings
from ito_ray.evaluation.evaluate import evaluate
from ito_ray.evaluation.evaluators import EVALUATORS, choose
from ito_ray.evaluation.report import Report
from ito_ray.evaluation.subject import Subject
from ito_ray.evaluation.zero_shot import zero_shot
from tests.evaluation.shapes import SHAPES, ShapeEncoder, draw, write_shape_shards


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("data")
    write_shape_shards(root / "heldout", 40)
    write_shape_shards(root / "labelled", 60, seed=1000)
    (root / "classes.txt").write_text("\n".join(SHAPES), encoding="utf-8")
    return Config(
        data=DataConfig(heldout=(str(root / "heldout"),)),
        eval=EvalConfig(zero_shot=(str(root / "labelled"),), classes=str(root / "classes.txt"), batch=16),
    )


@pytest.fixture(scope="module")
def report(cfg: Config) -> Report:
    return evaluate(ShapeEncoder(), cfg, evaluators=list(EVALUATORS), captions=2)


def unit(rng: np.random.Generator, *shape: int) -> Any:
    rows = rng.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_every_headline_number_has_an_interval_around_it(report: Report) -> None:
    assert {m.name.split("/")[0] for m in report.headline} == {"heldout", *EVALUATORS} - {"retrieval"}
    for measure in report.headline:
        assert measure.interval is not None, measure.name
        assert measure.interval[0] <= measure.value <= measure.interval[1], measure.name


def test_each_set_is_embedded_once(cfg: Config) -> None:
    encoder = ShapeEncoder()
    calls: list[int] = []
    encode = encoder.encode_images
    encoder.encode_images = lambda images: calls.append(len(images)) or encode(images)  # type: ignore[method-assign,func-returns-value]
    evaluate(encoder, cfg, evaluators=["retrieval", "geometry", "zero_shot", "linear_probe", "knn", "text_robustness"])
    assert sum(calls) == 40 + 60


def test_labelled_evaluators_leave_the_pairs_alone(cfg: Config) -> None:
    found = evaluate(ShapeEncoder(), cfg, evaluators=["knn"])
    assert found.pairs is None
    assert {m.name for m in found.headline} == {"knn/top1_k1", "knn/top1_k5", "knn/top1_k20"}


def test_robustness_equals_changing_the_pictures_by_hand(cfg: Config, report: Report) -> None:
    subject = Subject(ShapeEncoder(), cfg, captions=2)
    labelled, pairs = subject.labelled, subject.pairs
    for name in ("blur_2", "noise_3", "jpeg_1", "scale_3"):
        change = robustness.image_changes()[name]
        rows = list(read_all(subject, "labelled"))
        image = ShapeEncoder().encode_images([change(row.image, row.key) for row in rows])
        hits = zero_shot(image, labelled.labels, subject.class_embeddings).hits(1)
        assert report.metrics()[f"robustness/zero_shot_top1/{name}"] == pytest.approx(hits.mean())
        image = ShapeEncoder().encode_images([change(r.image, r.key) for r in read_all(subject, "pairs")])
        score = np.round(image.astype(np.float64) @ pairs.text.T, 12)
        texts = np.array(pairs.captions)
        right = np.array([np.isin(texts, texts[pairs.owner == number]) for number in range(len(image))])
        own, wrong = np.where(right, score, -np.inf), np.where(right, -np.inf, score)
        first = (own.max(axis=1) > wrong.max(axis=1)).mean()
        assert report.metrics()[f"robustness/r1_image_to_text/{name}"] == pytest.approx(first)
    changed = [v for n, v in report.metrics().items() if n.startswith("robustness/zero_shot_top1/") and n[-1].isdigit()]
    assert len(changed) == 12
    assert report.metrics()["robustness/zero_shot_top1/mean"] == pytest.approx(np.mean(changed))
    unchanged = report.metrics()["robustness/zero_shot_top1/unchanged"]
    assert unchanged == report.metrics()["zero_shot/top1"] > np.mean(changed)


def read_all(subject: Subject, which: str) -> Any:
    from ito_ray.evaluation.sources import read

    return read(subject.labels.source if which == "labelled" else subject.pair_source, limit=None, max_pixels=10**6)


def test_noise_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    image = draw("red", "circle", size=50)
    whole = np.asarray(robustness.noise(image, "key", 0.1))
    drawn = np.random.default_rng(zlib.crc32(b"key")).normal(0, 25.5, whole.shape)
    assert (whole == np.clip(np.rint(np.asarray(image) + drawn), 0, 255)).all()
    monkeypatch.setattr(robustness, "_AT_A_TIME", 100)
    assert (np.asarray(robustness.noise(image, "key", 0.1)) == whole).all()


def test_every_change_takes_a_line_longer_than_a_jpeg_can_be() -> None:
    line = Image.new("RGB", (2, 70_000), "red")
    for name, change in robustness.image_changes().items():
        assert change(line, "key").size == line.size, name


def test_changes_are_the_same_in_every_process_and_keep_the_size() -> None:
    image = draw("red", "cross", seed=1).resize((50, 30))
    for name, change in robustness.image_changes().items():
        once, again, other = change(image, "a"), change(image, "a"), change(image, "b")
        assert once.size == image.size
        np.testing.assert_array_equal(np.asarray(once), np.asarray(again))
        assert (once != other) == name.startswith("noise")
    strong = [np.abs(np.asarray(c(image, "a"), float) - np.asarray(image, float)).mean() for c in _of("scale")]
    assert strong == sorted(strong)


def _of(kind: str) -> list[Any]:
    return [change for name, change in robustness.image_changes().items() if name.startswith(kind)]


def test_typos_change_about_as_many_letters_as_they_should() -> None:
    texts = [f"a red circle on a white background number {i}" for i in range(200)]
    assert [robustness.typos(text, 0.0) for text in texts] == texts
    for rate in robustness.TYPO_RATES:
        changed = [robustness.typos(text, rate) for text in texts]
        assert changed == [robustness.typos(text, rate) for text in texts]
        untouched = np.mean([a == b for a, b in zip(texts, changed, strict=True)])
        letters = sum(c.isalpha() for c in texts[0])
        # a swap or a doubling of equal letters may leave the text as it was
        assert untouched == pytest.approx((1 - rate) ** letters, abs=0.12)
    assert robustness.typos("x", 1.0)
    assert set(robustness.text_changes()) == {"typos_1", "typos_2", "typos_3", "capitals"} | {
        f"frame_{i}" for i in (1, 2, 3, 4)
    }


def test_probes_equal_scikit_learn_on_the_same_halves(cfg: Config, report: Report) -> None:
    labelled = Subject(ShapeEncoder(), cfg).labelled
    seen: dict[int, int] = {}
    side = []
    for label in labelled.labels.tolist():
        side.append(seen.get(label, 0) % 2)
        seen[label] = seen.get(label, 0) + 1
    train, test = np.array(side) == 0, np.array(side) == 1
    c = report.metrics()["linear_probe/c"]
    model = LogisticRegression(C=c, max_iter=1000).fit(labelled.image[train], labelled.labels[train])
    expected = model.score(labelled.image[test], labelled.labels[test])
    assert report.metrics()["linear_probe/top1"] == pytest.approx(expected, abs=1e-6)
    nearest = (labelled.image[test] @ labelled.image[train].T).argmax(axis=1)
    hits = labelled.labels[train][nearest] == labelled.labels[test]
    assert report.metrics()["knn/top1_k1"] == pytest.approx(hits.mean(), abs=1e-6)


def test_a_probe_set_is_fitted_to_instead_of_half(cfg: Config) -> None:
    found = evaluate(ShapeEncoder(), cfg, evaluators=["linear_probe"], probe=cfg.eval.zero_shot).metrics()
    assert (found["linear_probe/train"], found["linear_probe/test"]) == (60, 60)


def test_classes_with_one_picture_are_left_out_of_probes_and_counted(cfg: Config) -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 1, 1, 1, 2])
    parts = probe.split(LabelledEmbeddings(unit(rng, 6, 4), labels, 0), None)
    assert (parts.train_n.tolist(), parts.test_m.tolist(), parts.left_out) == ([0, 1, 1], [0, 1], 1)
    with pytest.raises(DataError, match=r"at least two classes .* leaves 1\. Give more pictures"):
        probe.split(LabelledEmbeddings(unit(rng, 3, 4), np.array([0, 0, 2]), 0), None)
    with pytest.raises(DataError, match=r"training set \(--probe\) leaves 0"):
        probe.split(LabelledEmbeddings(unit(rng, 6, 4), labels, 0), LabelledEmbeddings(unit(rng, 1, 4), labels[:0], 0))


def test_confusions_equal_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    image, classes, labels = unit(rng, 200, 8), unit(rng, 9, 8), rng.integers(0, 9, 200)
    found = zero_shot(image, labels, classes)
    for chunk in (4, 1024):
        choice = first_choice(image, classes, found, chunk=chunk)
        np.testing.assert_array_equal(choice, (image.astype(np.float64) @ classes.T).argmax(axis=1))
    counted = confusion(labels, choice)
    np.testing.assert_array_equal(counted.matrix(np.arange(9)), confusion_matrix(labels, choice, labels=np.arange(9)))
    tied = np.tile(unit(rng, 1, 8), (4, 1))
    np.testing.assert_array_equal(first_choice(tied, tied, zero_shot(tied, np.arange(4), tied)), [1, 0, 0, 0])


def test_a_confusion_section_says_in_words_what_the_picture_shows(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    image, classes, labels = unit(rng, 200, 8), unit(rng, 30, 8), rng.integers(0, 30, 200)
    found = zero_shot(image, labels, classes)
    section = confusion_section(found, first_choice(image, classes, found), [f"class ${i}_" for i in range(30)])
    counts = [int(row[2].split()[0]) for row in section.grids[0].rows]
    assert counts == sorted(counts, reverse=True)
    assert all(row[0] != row[1] for row in section.grids[0].rows)
    assert float(section.grids[1].rows[0][1].split()[0]) == round(100 * min(found.per_class))
    counted = confusion(labels, first_choice(image, classes, found))
    wrong = counted.true_P != counted.taken_P
    shown = _shown(counted.true_P[wrong], counted.taken_P[wrong], np.bincount(labels, minlength=30))
    assert len(shown) == 20
    drawn = counted.matrix(shown)
    assert drawn[~np.eye(20, dtype=bool)].max() == counts[0]
    section.pictures[0].draw(tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["zeroshot"], r"--evaluators zeroshot: there is retrieval, .* Did you mean zero_shot\?"),
        (["knn"], r"--evaluators knn needs eval.zero_shot \(--zero-shot\)"),
    ],
)
def test_wrong_choices(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(names, pairs=True, labelled=False)


def test_the_default_is_what_there_is_data_for() -> None:
    assert list(choose(None, pairs=True, labelled=False)) == ["retrieval", "geometry"]
    assert list(choose(None, pairs=False, labelled=True)) == ["zero_shot"]
    assert list(choose(["robustness", "robustness"], pairs=True, labelled=False)) == ["robustness"]


def test_details_stay_out_of_the_headline(report: Report) -> None:
    headline = {m.name for m in report.headline}
    assert "robustness/zero_shot_top1/mean" in headline
    assert "robustness/zero_shot_top1/blur_1" in report.metrics().keys() - headline


def test_differences_are_taken_sample_by_sample(cfg: Config, report: Report) -> None:
    class Blind(ShapeEncoder):
        @staticmethod
        def _imagine(text: str) -> Any:
            return draw("black", "bar") if "bar" in text else ShapeEncoder._imagine(text.replace("red", "blue"))

    other = {m.name: m for m in evaluate(Blind(), cfg, captions=2).measures}
    mine = {m.name: m for m in report.measures}
    name = "heldout/r5_text_to_image"
    found = mine[name].difference(other[name])
    assert found is not None
    assert found.value == pytest.approx(mine[name].value - other[name].value)
    assert found.interval[0] <= found.value <= found.interval[1]
    same = mine[name].difference(mine[name])
    assert same is not None
    assert (same.value, same.interval, same.sure) == (0.0, same.interval, False)
    assert mine["geometry/modality_gap"].difference(other["geometry/modality_gap"]) is None
    fewer = dataclasses.replace(mine[name], sample=None)
    assert fewer.difference(mine[name]) is None
