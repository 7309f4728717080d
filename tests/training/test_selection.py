"""The best of a curve and the end of patience, against counting by hand; and what cannot be chosen by."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError
from ito_ray.training.selection import Criterion, Point, criterion, stopped_early
from ito_ray.training.state import State, read_state, require_same_run, write_state
from tests.tiny import tiny_config

R1 = "heldout/r1_image_to_text"
CURVES = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.5]), max_size=12).map(
    lambda values: [(10 * number, value) for number, value in enumerate(values, start=1)]
)


@given(CURVES, st.booleans(), st.integers(0, 4), st.sampled_from([0.0, 0.1]))
def test_patience_as_counted_by_hand(curve: list[Point], larger: bool, patience: int, least: float) -> None:
    waited, reference, expected = 0, None, None
    for step, value in curve:
        gain = value if larger else -value
        if reference is None or gain - (reference[1] if larger else -reference[1]) > least:
            reference, waited = (step, value), 0
        else:
            waited += 1
        if patience and waited >= patience:
            expected = reference
            break
    assert Criterion(R1, larger, patience, least).ran_out(curve) == expected


@given(CURVES, st.booleans())
def test_the_best_is_the_first_of_equal_ones(curve: list[Point], larger: bool) -> None:
    found = Criterion(R1, larger).best(curve)
    if not curve:
        assert found is None
        return
    values = [value for _, value in curve]
    assert found == curve[values.index(max(values) if larger else min(values))]


@given(CURVES, st.booleans(), st.integers(1, 4))
def test_the_kept_ones_are_those_that_no_more_than_others_beat(curve: list[Point], larger: bool, keep: int) -> None:
    def beats(one: Point, other: Point) -> bool:
        """Better, or as good and earlier."""
        gains = [value if larger else -value for value in (one[1], other[1])]
        return gains[0] > gains[1] or (gains[0] == gains[1] and one[0] < other[0])

    expected = {one for one in curve if sum(beats(other, one) for other in curve) < keep}
    found = Criterion(R1, larger, keep=keep).kept(curve)
    assert set(found) == expected and found[:1] == [one for one in [Criterion(R1, larger).best(curve)] if one]


def _config(**evaluation: object) -> Config:
    data = {"heldout": ["heldout.tar"]}
    return tiny_config(data=data, eval={"every": 5, "best": R1, **evaluation}, train={"steps": 40})


def test_the_direction_is_the_metrics() -> None:
    assert criterion(_config(patience=3, min_improvement=0.01, keep_best=2)) == Criterion(R1, True, 3, 0.01, 2)
    assert criterion(_config(best="heldout/median_rank_image_to_text")) == Criterion(
        "heldout/median_rank_image_to_text", False
    )
    assert criterion(_config(best="")) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"best": "retrieval/r1_image_to_text"}, f"Did you mean {R1}?"),
        ({"best": "zero_shot/top1"}, "with this data there is heldout/r1_text_to_image"),
        ({"best": "heldout/pairs"}, "eval.best=heldout/pairs"),
        ({"every": 0}, "set eval.every"),
        ({"best": "", "patience": 2}, "eval.patience=2 needs a metric"),
        ({"min_improvement": 0.1}, "set eval.patience"),
        ({"best": "", "keep_best": 3}, "eval.keep_best=3 needs a metric"),
        ({"gpu": True}, "set eval.cpus"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        criterion(_config(**changes))
    assert says in str(error.value)


def test_a_run_that_ended_early_stays_ended_unless_more_patience_is_given(tmp_path: Path) -> None:
    cfg = _config(patience=2)
    curve = [(5, 0.5), (10, 0.4), (15, 0.5), (20, 0.9)]  # the last was under way when patience ran out
    write_state(tmp_path, State(20, {}, cfg.model_dump(mode="json"), "plan", [], {}, curve, False, True))
    state = read_state(tmp_path)
    assert (state.curve, state.evaluating, state.stopped) == (curve, False, True)
    assert stopped_early(cfg, state) == (
        f"{R1} did not improve in 2 evaluations after step 5 (0.5000): ended after 20 of 40 steps"
    )
    assert not stopped_early(_config(patience=3), state)
    assert not stopped_early(cfg, State(15, {}, {}, "plan", [], {}, curve[:3])), "not ended yet: at the next evaluation"


def test_another_metric_is_another_run(tmp_path: Path) -> None:
    state = State(5, {}, _config().model_dump(mode="json"), "plan", [], {})
    with pytest.raises(ConfigError, match=r"eval\.best='zero_shot/top1'.*started with 'heldout/r1_image_to_text'"):
        require_same_run(state, _config(best="zero_shot/top1"), "plan", tmp_path)
