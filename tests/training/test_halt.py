"""Ranks that ask when they like hear the same word at the same step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ito_ray.training.halt import Agreement, Halt

LAST = 8


@given(
    order=st.lists(st.integers(0, 2), min_size=3 * LAST, max_size=3 * LAST),
    at=st.integers(0, 3 * LAST),
    how=st.sampled_from(["checkpoint", "stop"]),
)
def test_all_ranks_hear_the_same_word_at_the_same_step(order: list[int], at: int, how: Halt) -> None:
    agreement = Agreement()
    heard: list[dict[int, Halt]] = [{}, {}, {}]
    for moment, rank in enumerate(order):
        if moment == at:
            assert agreement.order(how) == (moment > 0)
        step = len(heard[rank]) + 1
        heard[rank][step] = agreement.word(step)
    agreed = 1 + max(order[:at].count(rank) for rank in range(3))
    for one in heard:
        assert one == {step: how if step == agreed and at < len(order) else "" for step in one}


@given(
    order=st.lists(st.integers(0, 2), min_size=3 * LAST, max_size=3 * LAST),
    wishes=st.dictionaries(st.integers(0, 3 * LAST), st.sampled_from(["checkpoint", "stop"])),
)
def test_a_later_order_does_not_take_back_what_one_rank_was_told(order: list[int], wishes: dict[int, Halt]) -> None:
    agreement = Agreement()
    asked = [0, 0, 0]
    heard: dict[int, set[Halt]] = {}
    for moment, rank in enumerate(order):
        if moment in wishes:
            agreement.order(wishes[moment])
        asked[rank] += 1
        heard.setdefault(asked[rank], set()).add(agreement.word(asked[rank]))
    assert all(len(words) == 1 for words in heard.values()), heard


def test_who_was_told_to_stop_stops_again_after_a_restart() -> None:
    agreement = Agreement()
    assert agreement.word(5) == ""
    agreement.order("stop")
    assert agreement.word(6) == "stop"
    agreement.restarted()
    assert [agreement.word(step) for step in (3, 4)] == ["stop", ""]


def test_a_checkpoint_that_somebody_wants_does_not_undo_a_stop() -> None:
    agreement = Agreement()
    agreement.word(5)
    agreement.order("stop")
    agreement.order("checkpoint")
    assert agreement.word(6) == "stop"


def test_a_checkpoint_out_of_turn_is_not_asked_for_again_after_a_restart() -> None:
    agreement = Agreement()
    agreement.word(5)
    agreement.order("checkpoint")
    agreement.restarted()
    assert [agreement.word(step) for step in (1, 2)] == ["", ""]
