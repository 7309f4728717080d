"""Tokenizers survive saving, agree with their models, and pad to the longest text only."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
from transformers import PreTrainedTokenizerBase

from ito_ray.data.tokens import clip_tokenizer, load_tokenizer, tokenize, train_wordpiece
from ito_ray.errors import ConfigError

CAPTIONS = [
    "a red star on a yellow background",
    "Two BLUE hearts beside a green clock!",
    "it's 1999: café, naïve & déjà vu",
    "unknown symbols 星 🙂 … word",
    "an orange umbrella left of a grey house " * 20,
    "",
]


@pytest.fixture(scope="module")
def wordpiece() -> PreTrainedTokenizerBase:
    return train_wordpiece(CAPTIONS, 200, 16)


@pytest.fixture(scope="module")
def clip() -> PreTrainedTokenizerBase:
    return clip_tokenizer(77)


@pytest.mark.parametrize("name", ["wordpiece", "clip"])
def test_saved_and_loaded_is_the_same(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    for context in (16, 8):
        before, after = (tokenize(each, CAPTIONS, context) for each in (tokenizer, again))
        assert (before.ids == after.ids).all() and (before.lengths == after.lengths).all()
    assert again.pad_token_id == tokenizer.pad_token_id and again.model_max_length == tokenizer.model_max_length


def test_clip_ids_are_open_clips(clip: PreTrainedTokenizerBase) -> None:
    tokens = tokenize(clip, CAPTIONS, 77)
    theirs = open_clip.get_tokenizer("ViT-B-32")(CAPTIONS).numpy()
    for ids, length, expected in zip(tokens.ids, tokens.lengths, theirs, strict=True):
        assert ids[:length].tolist() == expected[: (expected == 49407).argmax() + 1].tolist()
    assert len(clip) == 49408


def test_clip_reads_back_what_it_wrote(clip: PreTrainedTokenizerBase) -> None:
    ids = tokenize(clip, ["a red star, left of two blue hearts"], 77).ids[0]
    assert clip.decode(ids, skip_special_tokens=True) == "a red star , left of two blue hearts"


def test_padding_to_the_longest_only(wordpiece: PreTrainedTokenizerBase) -> None:
    short = tokenize(wordpiece, ["a red star", "a"], 16)
    assert short.ids.shape == (2, 5) and short.lengths.tolist() == [5, 3]
    assert short.ids.dtype == short.lengths.dtype == np.int32
    assert short.ids[1, 3:].tolist() == [wordpiece.pad_token_id] * 2
    assert tokenize(wordpiece, CAPTIONS, 16).ids.shape == (6, 16)


@pytest.mark.parametrize("name", ["wordpiece", "clip"])
@pytest.mark.parametrize("context", [8, 77])
def test_ids_are_those_of_the_tokenizers_own_call(name: str, context: int, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    ours = tokenize(tokenizer, CAPTIONS, context)
    theirs = tokenizer(CAPTIONS, truncation=True, max_length=context, padding="longest", return_tensors="np")
    assert (ours.ids == theirs["input_ids"]).all()
    assert (ours.lengths == theirs["attention_mask"].sum(1)).all()


@pytest.mark.parametrize("name", ["wordpiece", "clip"])
def test_cut_texts_keep_their_end_token(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    tokens = tokenize(tokenizer, CAPTIONS, 8)
    whole = tokenize(tokenizer, CAPTIONS, 77)
    for ids, length, full, full_length in zip(tokens.ids, tokens.lengths, whole.ids, whole.lengths, strict=True):
        assert length == min(8, full_length)
        assert ids[0] == full[0] and ids[length - 1] == full[full_length - 1]
        assert ids[1 : length - 1].tolist() == full[1 : length - 1].tolist()


def test_no_texts(wordpiece: PreTrainedTokenizerBase) -> None:
    tokens = tokenize(wordpiece, [], 16)
    assert tokens.ids.shape[0] == 0 and tokens.lengths.shape == (0,)


def test_wordpiece_knows_what_it_was_trained_on(wordpiece: PreTrainedTokenizerBase) -> None:
    words = ["red", "star", "hearts", "umbrella"]
    tokens = wordpiece.tokenize("red star hearts umbrella")
    assert [token for token in tokens if not token.startswith("##")][:2] == words[:2]
    assert wordpiece.unk_token not in tokens and len(wordpiece) <= 200


def test_the_same_captions_give_the_same_vocabulary() -> None:
    one, two = (train_wordpiece(iter(CAPTIONS), 150, 16) for _ in range(2))
    assert one.get_vocab() == two.get_vocab()


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no captions"):
        train_wordpiece([" ", ""], 100, 16)
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"ito_ray\[clip\]"):
        clip_tokenizer(77)
