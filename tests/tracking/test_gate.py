"""What the gate decides, from numbers alone: each criterion on both sides of its bound."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ito_ray.config.gate import Gate
from ito_ray.errors import ConfigError
from ito_ray.evaluation.compare import Gain, GroupChange
from ito_ray.evaluation.latency import Latency
from ito_ray.tracking.gate import Decision, Evidence, Size, judge

GOOD = Evidence(
    gains=(Gain("heldout/r1_text_to_image", 0.30, 0.25, 0.02, 0.08, 1000),),
    groups=(GroupChange("birds", 50, 0.50, 0.55), GroupChange("boats", 50, 0.9, 0.1)),
    latency={"image": Latency(1.0, 1.0, 1.1), "text": Latency(1.0, 1.0, 0.9)},
    size=Size(110, 10),
    champion_size=Size(100, 9),
)


def failed(decision: Decision) -> list[str]:
    return [one.name for one in decision.criteria if one.passed is False]


def test_on_the_bounds_it_passes() -> None:
    decision = judge(Gate(), GOOD)
    assert decision.passed
    assert decision.refusals == ()
    assert [one.name for one in decision.criteria] == [
        "contents, digest, parity",
        "heldout/r1_text_to_image",
        "groups of classes",
        "latency, image",
        "latency, text",
        "size",
    ]


@pytest.mark.parametrize(
    ("changed", "name", "sentence"),
    [
        ({"problems": ("extra.pkl is not allowed.",)}, "contents, digest, parity", "extra.pkl is not allowed."),
        (
            {"gains": (replace(GOOD.gains[0], low=0.0),)},
            "heldout/r1_text_to_image",
            "changes by +5.00%, with 95 % certainty by +0.00% to +8.00%, and that does not lie above +0.00%: more data",
        ),
        ({"gains": (replace(GOOD.gains[0], items=99),)}, "heldout/r1_text_to_image", "measured on 99 items"),
        (
            {"gains": (replace(GOOD.gains[0], candidate=0.2, low=-0.08, high=-0.02),)},
            "heldout/r1_text_to_image",
            "train a better candidate",
        ),
        (
            {"groups": (GroupChange("birds", 50, 0.499, 0.55),)},
            "groups of classes",
            "1 of 1 groups of classes lose more than gate.max_group_fall=0.05 of top-1 accuracy: birds 55.0% → 49.9%",
        ),
        (
            {"latency": {"text": Latency(2.2, 2.0, 1.101)}},
            "latency, text",
            "1.10 times the champion's (2.20 ms against",
        ),
        ({"size": Size(111, 10)}, "size", "1.11 times the champion's"),
    ],
)
def test_beyond_a_bound_it_refuses_with_a_sentence(changed: dict[str, object], name: str, sentence: str) -> None:
    decision = judge(Gate(), replace(GOOD, **changed))  # type: ignore[arg-type]
    assert not decision.passed
    assert failed(decision) == [name]
    assert sentence in decision.refusals[0]


def test_every_failure_is_told() -> None:
    bad = replace(GOOD, gains=(replace(GOOD.gains[0], low=-0.1),) * 2, size=Size(999, 1))
    assert len(judge(Gate(), bad).refusals) == 3


def test_the_bounds_are_the_configured_ones() -> None:
    loose = Gate(min_gain=-0.05, min_items=1, max_group_fall=0.5, max_latency_ratio=3, max_size_ratio=3)
    worse = replace(
        GOOD,
        gains=(Gain("heldout/r1_text_to_image", 0.25, 0.25, -0.04, 0.04, 5),),
        groups=(GroupChange("birds", 50, 0.2, 0.6),),
        latency={"image": Latency(2.0, 1.0, 2.0)},
        size=Size(250, 1),
    )
    assert judge(loose, worse).passed
    assert len(judge(Gate(), worse).refusals) == 4


def test_an_unsound_folder_is_judged_by_nothing_else() -> None:
    assert len(judge(Gate(), replace(GOOD, problems=("broken.",))).criteria) == 1


def test_a_first_version_needs_to_be_sound_only() -> None:
    decision = judge(Gate(), Evidence(has_champion=False))
    assert decision.passed
    assert [one.passed for one in decision.criteria] == [True, None]
    assert not judge(Gate(), Evidence(has_champion=False, problems=("broken.",))).passed


def test_without_a_zero_shot_set_the_groups_are_said_to_be_unmeasured() -> None:
    decision = judge(Gate(), replace(GOOD, groups=None))
    assert decision.passed
    (groups,) = [one for one in decision.criteria if one.name == "groups of classes"]
    assert (groups.passed, groups.sentence) == (None, "Not measured: no zero-shot set was given.")


def test_metrics_are_chosen_among_the_measured() -> None:
    measured = ("heldout/r1_text_to_image", "heldout/r5_text_to_image", "heldout/r1_image_to_text", "zero_shot/top1")
    assert Gate().chosen(measured) == ("heldout/r1_text_to_image", "heldout/r1_image_to_text", "zero_shot/top1")
    assert Gate(metrics=("zero_shot/top1",)).chosen(measured) == ("zero_shot/top1",)
    with pytest.raises(ConfigError, match=r"gate\.metrics=top1 is not measured .* zero_shot/top1"):
        Gate(metrics=("top1",)).chosen(measured)
