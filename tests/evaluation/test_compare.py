"""Two encoders on the same drawn shapes: gains, groups of classes, latency."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ito_ray.errors import ConfigError, DataError
from ito_ray.evaluation.compare import GroupChange, gain, group_changes, read_groups
from ito_ray.evaluation.encoder import Embeddings
from ito_ray.evaluation.intervals import paired_ci
from ito_ray.evaluation.latency import side_by_side
from ito_ray.evaluation.report import Measure, Report, Sample


def report(name: str, **samples: Sample) -> Report:
    measures = tuple(Measure.share(key.replace("__", "/"), key, sample, 0.1) for key, sample in samples.items())
    return Report(name, measures, classes=("cat", "dog", "car", "boat"))


def classified(hits: Sequence[int], labels: Sequence[int]) -> Report:
    sample = Sample(np.array(hits, dtype=bool), np.array(labels, dtype=np.int64))
    return report("encoder", zero_shot__top1=sample)


def test_a_gain_is_the_paired_difference() -> None:
    rng = np.random.default_rng(0)
    ours, theirs, groups = rng.random(300) < 0.6, rng.random(300) < 0.5, rng.integers(0, 90, 300)
    found = gain(report("a", r1=Sample(ours, groups)), report("b", r1=Sample(theirs, groups)), "r1")
    assert (found.candidate, found.champion, found.items) == (ours.mean(), theirs.mean(), 300)
    assert found.value == ours.mean() - theirs.mean()
    assert (found.low, found.high) == paired_ci(ours, theirs, groups=groups)


@pytest.mark.parametrize(("hits", "labels"), [([1, 0], [0, 1]), ([1, 0, 1], [0, 1, 2])])
def test_other_samples_are_not_compared(hits: list[int], labels: list[int]) -> None:
    with pytest.raises(DataError, match="the shards changed in between"):
        gain(classified([1, 0, 1], [0, 1, 1]), classified(hits, labels), "zero_shot/top1")


LABELS = [0] * 4 + [1] * 4 + [2] * 4 + [3] * 2
OURS = [1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0]
THEIRS = [1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1]


def test_every_class_is_a_group_and_small_ones_are_judged_together() -> None:
    both = classified(OURS, LABELS), classified(THEIRS, LABELS)
    assert group_changes(*both, None, min_images=4) == (
        GroupChange("boat", 2, 0.0, 1.0),  # the only small one keeps its name
        GroupChange("dog", 4, 0.25, 0.75),
        GroupChange("car", 4, 0.5, 0.5),
        GroupChange("cat", 4, 1.0, 0.5),
    )
    assert group_changes(*both, None, min_images=5) == (
        GroupChange("(4 with fewer than 5 images, together)", 14, 7 / 14, 9 / 14),
    )


def test_named_groups_and_what_is_in_none() -> None:
    changes = group_changes(
        classified(OURS, LABELS), classified(THEIRS, LABELS), {"animals": ("cat", "dog")}, min_images=1
    )
    assert changes == (
        GroupChange("(in no group)", 6, 2 / 6, 4 / 6),
        GroupChange("animals", 8, 5 / 8, 5 / 8),
    )
    assert changes[0].fall == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('["cat"]', "must be an object of lists of names"),
        ('{"animals": "cat"}', "must be an object of lists of names"),
        ('{"animals": ["cow"]}', "puts 'cow' into 'animals', but the class file has no such class: it has 'cat'"),
        ('{"animals": ["cat"], "pets": ["cat"]}', "has 'cat' in 'animals' and in 'pets'"),
    ],
)
def test_bad_groups(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "groups.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_groups(path, ("cat", "dog"))


def test_good_groups(tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"animals": ["cat", "dog"]}))
    assert read_groups(path, ("cat", "dog", "car")) == {"animals": ("cat", "dog")}
    with pytest.raises(ConfigError, match=r"nowhere\.json cannot be read"):
        read_groups(tmp_path / "nowhere.json", ("cat",))


class Sleeper:
    """Takes the same time for every call, whatever comes in, and slows down as the machine might."""

    name = "sleeper"

    def __init__(self, seconds: float, calls: list[str], drift: list[float]) -> None:
        self.seconds, self.calls, self.drift = seconds, calls, drift

    def _sleep(self, inputs: Sequence[Any]) -> Embeddings:
        self.calls.append(self.name)
        time.sleep(self.seconds * self.drift[0])
        self.drift[0] *= 1.03
        return np.zeros((len(inputs), 1), np.float32)

    def encode_images(self, images: Sequence[Image.Image]) -> Embeddings:
        return self._sleep(images)

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        return self._sleep(texts)


def test_latency_is_measured_in_turns() -> None:
    """The machine gets slower by 3 % a call: measured one after the other, the second would seem twice as slow."""
    calls: list[str] = []
    drift = [1.0]
    ours, theirs = Sleeper(0.006, calls, drift), Sleeper(0.004, calls, drift)
    theirs.name = "other"
    found = side_by_side(ours, theirs, images=[Image.new("RGB", (4, 4))] * 2, texts=["a"] * 2, rounds=5)
    assert calls[:8] == ["sleeper", "other", "other", "sleeper"] * 2
    assert found["text"].ratio == pytest.approx(1.5, rel=0.2)
    assert found["image"].champion_ms == pytest.approx(found["image"].candidate_ms / 1.5, rel=0.25)
