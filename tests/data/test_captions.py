"""Captions are cleaned of the web's dirt and drawn without needless repeats."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ito_ray.data.captions import MOST_CHARACTERS, cleaned, draw, fault_of, fill
from ito_ray.data.preprocess import clean_text


@pytest.mark.parametrize(
    ("dirty", "cleaned"),
    [
        ("  a\tred \n star ", "a red star"),
        ("salt &amp; pepper", "salt & pepper"),
        ("twice &amp;quot;escaped&amp;quot;", 'twice "escaped"'),
        ("cafe\u0301", "caf\u00e9"),
        ("non\u00a0breaking&nbsp;space", "non breaking space"),
        ("Case Stays, AT&T too", "Case Stays, AT&T too"),
        ("&nbsp;", ""),
        ("ﬁne ｆｕｌｌ 𝓼𝓽𝔂𝓵𝓮", "fine full style"),
        ("soft\u00adhyphen zero\u200bwidth\ufeff", "softhyphen zerowidth"),
        ("no\x00thing\x07 to\x7f see\x85\x1fhere", "nothing to see here"),
        ("family \U0001f468\u200d\U0001f469", "family \U0001f468\u200d\U0001f469"),
    ],
)
def test_clean(dirty: str, cleaned: str) -> None:
    assert clean_text(dirty) == cleaned


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("a red star", None),
        (b"caf\xc3\xa9", None),
        ("\U0001f600", None),
        ("", None),
        ("x" * MOST_CHARACTERS, None),
        ("half \ud83d", "caption_not_utf8"),
        ("\ude00 half", "caption_not_utf8"),
        ("x" * (MOST_CHARACTERS + 1), "caption_too_long"),
        (b"x" * (MOST_CHARACTERS + 1), "caption_too_long"),
        ("é".encode() * (MOST_CHARACTERS + 1), "caption_too_long"),
        (b"x" * 20_000_000, "caption_too_long"),
        (b"caf\xe9", "caption_not_utf8"),
        (b"\xed\xa0\xbd", "caption_not_utf8"),
        (7, "caption_not_text"),
        ({"text": "x"}, "caption_not_text"),
    ],
)
def test_what_can_be_a_caption(value: object, reason: str | None) -> None:
    fault = fault_of(value)
    assert (fault and fault[0]) == reason and (fault is None or fault[1])


@pytest.mark.parametrize(
    ("value", "text", "reason"),
    [
        (b"\xef\xbb\xbfa &amp; b", "a & b", None),
        (" \u200b ", "", None),
        ("\ufdfa" * (MOST_CHARACTERS // 18), None, None),
        ("\ufdfa" * (MOST_CHARACTERS // 18 + 1), None, "caption_too_long"),
        (b"\xff", "", "caption_not_utf8"),
    ],
)
def test_what_is_clean_is_clean_when_it_is_read_again(value: object, text: str | None, reason: str | None) -> None:
    found, fault = cleaned(value)
    assert (fault and fault[0]) == reason
    assert text is None or found == text
    assert fault or cleaned(found) == (found, None)


def test_a_caption_of_megabytes_costs_milliseconds() -> None:
    text = "\ud83d" * 20_000_000
    started = time.process_time()
    assert fault_of(text) is not None
    assert time.process_time() - started < 0.1


def test_without_replacement_while_there_are_enough() -> None:
    rng = np.random.default_rng(0)
    captions = [str(i) for i in range(5)]
    for count in range(1, 6):
        assert len(set(draw(captions, count, rng))) == count


def test_every_caption_before_any_repeats() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = draw(["a", "b", "c"], 7, rng)
        assert len(drawn) == 7 and sorted(drawn[:3]) == sorted(drawn[3:6]) == ["a", "b", "c"]
    assert draw(["only"], 2, rng) == ["only", "only"]


def test_all_are_drawn_equally_often() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw(["a", "b", "c"], 1, rng)[0] for _ in range(3000)]
    assert all(abs(drawn.count(name) - 1000) < 130 for name in "abc")


def test_weights_decide_what_comes_first_and_nothing_comes_twice() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw(["a", "b", "c"], 2, rng, (6, 3, 1)) for _ in range(3000)]
    firsts = [first for first, _ in drawn]
    assert [firsts.count(name) / 3000 for name in "abc"] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    assert all(first != second for first, second in drawn)
    assert sorted(draw(["a", "b", "c"], 3, rng, (98, 1, 1))) == ["a", "b", "c"]


def test_templates_come_with_their_probabilities() -> None:
    rng = np.random.default_rng(0)
    filled = [fill("a {x} dog", {"a photo of {}": 0.5, "{}, drawn": 0.2}, rng) for _ in range(3000)]
    for text, share in (("a photo of a {x} dog", 0.5), ("a {x} dog, drawn", 0.2), ("a {x} dog", 0.3)):
        assert filled.count(text) / 3000 == pytest.approx(share, abs=0.03)
    assert fill("bare", {}, rng) == "bare"
