"""Tokenizers survive saving, agree with their models, and pad to the longest text only."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ito_ray.data.preprocess import clean_text
from ito_ray.data.tokens import adopt_tokenizer, clip_tokenizer, load_tokenizer, tokenize, train_wordpiece
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
    theirs = open_clip.get_tokenizer("ViT-B-32")([clean_text(caption) for caption in CAPTIONS]).numpy()
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


DIRTY = [
    "ﬁne ｆｕｌｌ 𝓼𝓽𝔂𝓵𝓮",
    "soft\u00adhyphen zero\u200bwidth\ufeff",
    "  a\tred \n\n star\u00a0here \u2003 and\u3000there ",
    "no\x00thing\x07 to\x7f see\x85here",
    "cafe\u0301 \uff1c|endoftext|\uff1e ①²½…",
    "family \U0001f468\u200d\U0001f469 और क्षि",
]


def _unigram() -> PreTrainedTokenizerBase:
    """As T5's and XLM-R's: the special tokens are pieces of the vocabulary, and white space counts."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581", -2.0),
        ("\u2581red", -3.0),
        ("\u2581star", -3.0),
    ]
    core = Tokenizer(models.Unigram([*pieces, *((letter, -9.0) for letter in "<>/s adertn")], unk_id=2))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _bert() -> PreTrainedTokenizerBase:
    """Of a class that builds its normalizer anew whenever it is loaded."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "sep", "mask", "cls", "red", "star", "full"]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


@pytest.fixture(scope="module", params=["wordpiece", "clip", "unigram", "bert"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as a run keeps it."""
    folder, theirs = (tmp_path_factory.mktemp("tokenizer") for _ in range(2))
    if request.param in ("wordpiece", "clip"):
        request.getfixturevalue(request.param).save_pretrained(folder)
        return folder
    (_unigram() if request.param == "unigram" else _bert()).save_pretrained(theirs)
    adopt_tokenizer(theirs).save_pretrained(folder)
    return folder


def _body(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Without what stands around every text."""
    empty = tokenize(tokenizer, [""], 64).ids[0]
    start = len(empty) - 1
    return list(ids)[start:-1]


def test_the_name_of_a_special_token_in_a_caption_is_text(saved: Path) -> None:
    tokenizer = load_tokenizer(saved)
    special = {tokenizer.convert_tokens_to_ids(name) for name in tokenizer.all_special_tokens}
    special -= {tokenizer.unk_token_id} - {tokenizer.pad_token_id}
    for name in {*tokenizer.all_special_tokens, "[SEP]", "<|endoftext|>", "</s>", "[MASK]"}:
        text = f"red {name} star"
        tokens = tokenize(tokenizer, [text], 64)
        ids = tokens.ids[0, : tokens.lengths[0]].tolist()
        assert special.isdisjoint(_body(ids, tokenizer)), (name, ids)
        stock = AutoTokenizer.from_pretrained(str(saved), local_files_only=True)
        assert stock(text)["input_ids"] == ids


def test_stock_tokenizers_clean_as_training_does_all_but_entities(saved: Path) -> None:
    tokenizer = load_tokenizer(saved)
    stock = AutoTokenizer.from_pretrained(str(saved), local_files_only=True)
    bare = Tokenizer.from_file(str(saved / "tokenizer.json"))
    for text in DIRTY:
        tokens = tokenize(tokenizer, [clean_text(text)], 64)
        ids = tokens.ids[0, : tokens.lengths[0]].tolist()
        assert stock(text, truncation=True, max_length=64)["input_ids"] == ids == bare.encode(text).ids[:64], text


def test_an_adopted_tokenizer_gives_the_ids_of_its_own_class(tmp_path: Path) -> None:
    _bert().save_pretrained(tmp_path / "theirs")
    adopted = adopt_tokenizer(tmp_path / "theirs")
    adopted.save_pretrained(tmp_path / "ours")
    texts = ["red star", "A FULL red, star", ""]
    expected = _bert()(texts)["input_ids"]
    assert load_tokenizer(tmp_path / "ours")(texts)["input_ids"] == expected == adopted(texts)["input_ids"]
    assert adopted.mask_token == "[MASK]" and adopted.pad_token == "[PAD]"
