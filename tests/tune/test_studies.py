"""The arms of a study are valid and differ in what they claim; the command line refuses what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ito_ray.config.load import overlay
from ito_ray.errors import DataError
from ito_ray.losses.contrastive import info_nce
from tests.tiny import random_batch, tiny_config, tiny_method
from tune.ablation import Run, checked, main
from tune.arms import BASE, PAPER, SPENDINGS, TWICE, VARIANTS, Comparison
from tune.axes import apply
from tune.parent import fields
from tune.studies import STUDIES, study

FOLDER = Path("data")
VIEWS = "data.views.count"


def _differing(name: str, arm: str) -> dict[str, Any]:
    """Fields in which an arm differs from the study's base."""
    chosen = study(name, FOLDER)
    base, mine = fields(chosen.base), fields(apply(chosen.base, chosen.arms[arm], source=arm))
    assert base.keys() == mine.keys()
    return {field: mine[field] for field in base if mine[field] != base[field]}


def _studies_of(comparison: Comparison) -> list[str]:
    return [name for name in STUDIES if study(name, FOLDER).comparison is comparison]


@pytest.mark.parametrize("name", _studies_of(VARIANTS))
def test_variants_are_the_recipe_but_for_one_thing(name: str) -> None:
    arms = study(name, FOLDER).arms
    assert list(arms) == list(VARIANTS.labels)
    assert _differing(name, BASE) == {} and study(name, FOLDER).base.name == name
    for arm in arms:
        changed = {} if arm == BASE else json.loads(json.dumps(arms[arm]))
        assert _differing(name, arm) == changed, "each change is one, and says all"
    assert study(name, FOLDER).changed({"method.fusion_weight": 7.0}).arms[BASE] == {"method.fusion_weight": 2.0}


@pytest.mark.parametrize("name", _studies_of(PAPER))
def test_arms_differ_in_what_they_claim_and_in_nothing_else(name: str) -> None:
    base = study(name, FOLDER).base
    assert list(study(name, FOLDER).arms) == list(PAPER.labels)
    assert (base.method.name, base.data.views.count, base.method.fusion_weight) == ("ito", 2, 2.0)
    assert _differing(name, "clip") == {"method.name": "clip", VIEWS: 1}
    assert _differing(name, "siglip") == {"method.name": "siglip", VIEWS: 1}
    longer = {"train.steps": 2 * base.train.steps, "optim.warmup_steps": 2 * base.optim.warmup_steps}
    assert _differing(name, TWICE) == {"method.name": "clip", VIEWS: 1, **longer}
    assert _differing(name, "align") == {"method.fusion_weight": 0.0}
    for weight in (1.0, 4.0, 6.0):
        assert _differing(name, f"ito_{weight:g}") == {"method.fusion_weight": weight}
    assert _differing(name, "ito_2") == {}
    assert _differing(name, "align_captions") == {"method.fusion_weight": 0.0, "data.captions": 2}
    hidden = {"method.fusion.caption_drop": 0.5}
    assert _differing(name, "ito_1_captions_drop") == {"method.fusion_weight": 1.0, "data.captions": 2, **hidden}


@pytest.mark.parametrize("name", _studies_of(SPENDINGS))
def test_equal_compute_is_as_many_images_however_spent(name: str) -> None:
    chosen, spent = study(name, FOLDER), set()
    for arm, changes in chosen.arms.items():
        cfg = apply(chosen.base, changes, source=arm)
        spent.add(cfg.train.steps * cfg.train.global_batch * cfg.data.views.count)
        assert cfg.train.steps // cfg.optim.warmup_steps == chosen.base.train.steps // chosen.base.optim.warmup_steps
    assert spent == {chosen.base.train.steps * chosen.base.train.global_batch * 2}


@pytest.mark.parametrize("name", STUDIES)
def test_training_never_looks_at_the_test_sets(name: str) -> None:
    chosen = study(name, FOLDER)
    labelled = chosen.test.get("eval", {}).get("zero_shot", ())
    tested = {*chosen.test["data"]["heldout"], *labelled}
    for changes in chosen.arms.values():
        cfg = apply(chosen.base, changes, source=name)
        assert not tested & {*cfg.data.train, *cfg.data.heldout} and cfg.eval.zero_shot == ()
    measured = overlay(chosen.base, dict(chosen.test), source=name)
    assert set(measured.data.heldout) | set(measured.eval.zero_shot) == tested
    assert any("zero_shot" in metric for metric in chosen.headline) == bool(labelled)


def test_two_views_averaged_in_clips_loss_are_alignment_only() -> None:
    """Which is why the study has no such arm, and gives CLIP twice the steps instead."""
    method = tiny_method(tiny_config(method={"fusion_weight": 0.0}))
    batch, encoder = random_batch(6), method.encoder
    text_BD = F.normalize(encoder.text(batch.ids_CBT[0], batch.length_CB[0]).embedding_BD, dim=-1)
    losses = []
    for image_BCHW in batch.image_VBCHW:
        image_BD = F.normalize(encoder.image(image_BCHW).embedding_BD, dim=-1)
        losses.append(info_nce(image_BD, text_BD, image_BD, text_BD, encoder.logit_scale.exp()))
    torch.testing.assert_close(method.objective(method(batch)).loss, sum(losses) / 2)


def test_the_base_can_be_changed_and_the_longer_arm_follows() -> None:
    chosen = study("icons_quick", FOLDER).changed({"train.steps": 50, "optim.warmup_steps": 10})
    assert chosen.base.train.steps == 50
    assert (chosen.arms[TWICE]["train.steps"], chosen.arms[TWICE]["optim.warmup_steps"]) == (100, 20)
    assert chosen.arms["clip"] == {"method.name": "clip", VIEWS: 1}


def test_absent_data_are_refused_with_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no known/train: make it with") as told:
        checked(Run("emoji", tmp_path))
    assert "python -m pipelines.prepare shards EMOJI/noto-*.tar" in str(told.value)
    assert f"--out {tmp_path}/unseen" in str(told.value) and "FOLDER" not in str(told.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "emojy", "--data", "x"], "Did you mean emoji?"),
        (["run", "icons", "--data", "x", "--arms", "clipp"], "--arms clipp: there are clip, "),
        (["run", "icons", "--data", "x", "--seeds", "0"], "--seeds is 0: give 1 or more"),
        (
            ["run", "icons", "--data", "x", "--fix", "train.step=3"],
            "train.step is not a field. Did you mean train.step",
        ),
        (["run", "icons", "--data", "x", "--fix", "train.steps=10"], "leaves nothing of train.steps=10"),
        (["run", "clipart", "--data", "x"], "--data x has no train: make it with"),
        (["report", "nowhere"], "nowhere has no book.jsonl"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and message in told and "Traceback" not in told
