"""Every named space gives configurations that exist; conditions, overrides and mistakes."""

from __future__ import annotations

import random

import pytest

from ito_ray.config.recipes import icons_cpu
from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError
from tests.tiny import tiny_config
from tune.axes import Axis, Choice, Range, Space, apply, parse_axis, parse_fixed, value_of
from tune.spaces import SPACES, ito_views, ito_weights, space


@pytest.mark.parametrize("name", SPACES)
def test_every_point_of_a_named_space_is_a_configuration(name: str) -> None:
    for base in (icons_cpu(), tiny_config(train={"steps": 100})):
        SPACES[name](base).check(base)


def test_a_point_changes_what_it_names_and_nothing_else() -> None:
    base = icons_cpu()
    weights = ito_weights(base)
    changes = {"method.fusion_weight": 5.0, "method.alignment_weights.1": 0.5, "method.fusion.readout": "mean"}
    cfg = apply(weights.start(base), changes, source="test")
    assert cfg.method.fusion_weight == 5.0
    assert cfg.method.alignment_weights == (1.0, 0.5)
    assert cfg.method.fusion.readout == "mean"
    assert cfg.model_copy(update={"method": base.method}) == base
    assert value_of(cfg, "method.alignment_weights.1") == 0.5


def test_conditions_leave_impossible_corners_out() -> None:
    base = icons_cpu()
    views = ito_views(base)
    source = random.Random(0)
    drawn = [views.draw(lambda axis: source.choice(axis.domain.grid(5)), views.start(base)) for _ in range(200)]
    single = [one for one in drawn if one["data.views.count"] * one["data.captions"] == 1]
    assert 0 < len(single) < len(drawn)
    assert all(one["method.fusion_weight"] == 0.0 for one in single)


def test_without_its_condition_the_corner_is_refused_by_name() -> None:
    base = icons_cpu()
    careless = Space("careless", (Axis("data.views.count", Choice((1, 2))),))
    with pytest.raises(ConfigError, match=r"data\.views\.count=1.*exclude such corners with a condition"):
        careless.check(base)


def test_a_grid_has_each_combination_once() -> None:
    base = icons_cpu()
    weights = ito_weights(base).changed({}, {"method.alignment_weights.1": 1.0})
    points = list(weights.grid(weights.start(base), 3))
    assert len(points) == 1 + 2 * 3  # λ = 0 has no fusion to read out
    assert {point["method.fusion_weight"] for point in points} == {0.0, 4.0, 8.0}


def test_axes_from_the_command_line() -> None:
    assert parse_axis("optim.lr=1e-4..1e-2:log") == ("optim.lr", Range(1e-4, 1e-2, log=True))
    assert parse_axis("method.fusion.layers=1..4:int") == ("method.fusion.layers", Range(1, 4, integer=True))
    assert parse_axis("model.embed_dim=[64, 128]") == ("model.embed_dim", Choice((64, 128)))
    assert parse_axis("method.alignment_weights=[[1, 1], [1, 2]]")[1] == Choice(((1, 1), (1, 2)))
    assert parse_fixed("method.fusion.readout=cls") == ("method.fusion.readout", "cls")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lr", "write FIELD=LOW..HIGH"),
        ("optim.lr=1..", "write FIELD=LOW..HIGH"),
        ("optim.lr=1..2:cubic", "write FIELD=LOW..HIGH"),
        ("optim.lr=[]", "write FIELD=LOW..HIGH"),
        ("optim.lr=2..1", "smallest < largest"),
        ("optim.lr=0..1:log", "smallest above 0"),
    ],
)
def test_an_axis_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_axis(text)


def test_overrides_change_add_and_remove_axes() -> None:
    base = icons_cpu()
    changed = ito_weights(base).changed(
        {"method.fusion_weight": Range(1, 2), "optim.lr": Range(1e-4, 1e-2, log=True)},
        {"method.fusion.readout": "mean"},
    )
    assert [axis.field for axis in changed.axes] == ["method.fusion_weight", "method.alignment_weights.1", "optim.lr"]
    assert changed.start(base).method.fusion.readout == "mean"
    with pytest.raises(ConfigError, match="both name optim"):
        changed.changed({"optim.lr": Range(1, 2)}, {"optim.lr": 1})


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("method.fusion_wieght", "Did you mean method.fusion_weight"),
        ("method.fusion_weight.1", "method.fusion_weight is 2.0"),
        ("data.views.crop_scale.2", "no such place"),
    ],
)
def test_unknown_fields_are_refused_with_the_nearest(axis: str, message: str) -> None:
    base: Config = icons_cpu()
    with pytest.raises(ConfigError, match=message):
        Space("typo", (Axis(axis, Range(0.0, 1.0)),)).check(base)


def test_unknown_spaces_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean ito_weights"):
        space("ito_weigths", icons_cpu())
