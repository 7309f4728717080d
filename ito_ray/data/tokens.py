"""Tokenizers: trained on the captions, CLIP's own, or any from a folder; and token ids in batches.

A tokenizer is a Hugging Face one with a Rust backend, so that what training used is saved with the exported model. To
each of them a caption is data, whoever calls it: the name of a special token in it is text like any other, and what
`preprocess.clean_text` does to letters and white space is done by the tokenizer too. Entities are left to `clean_text`.
T tokens, n texts.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ito_ray.data.preprocess import INVISIBLE
from ito_ray.errors import ConfigError

_WORDPIECE_SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"
_LONGEST_TOKEN = 101
"""Characters that a token stands for at most, with the space before it: BERT gives up on words of more than 100."""
_CLIP_MERGES = 49_152 - 256 - 2
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SETTINGS = ("model_max_length", "padding_side", "truncation_side", "model_input_names", "extra_special_tokens")
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokens(NamedTuple):
    """`ids` int32 (n, T), filled up to the longest text with the pad token; `lengths` int32 (n,), the valid ones."""

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]


def train_wordpiece(captions: Iterable[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """A lower-casing BERT tokenizer, [CLS] … [SEP]; the same captions give the same one.

    It has at most `vocab_size` entries, more only if the captions have more different characters.

    Raises:
        ConfigError: when there are no captions.
    """
    texts = [text for text in captions if text.strip()]
    if not texts:
        raise ConfigError("There are no captions to train a tokenizer on: check data.train.")
    learner = _wordpiece(models.WordPiece(unk_token="[UNK]"))
    # Left alone, the trainer numbers inner letters in the order of a hash map, another one in each process, and breaks
    # ties between merges by these numbers. Given first, as if special, they are always the same.
    first = [*_WORDPIECE_SPECIAL.values(), *_inner_letters(learner, texts)]
    learner.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, show_progress=False)
    )
    tokenizer = _wordpiece(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return _for_captions(tokenizer, model_max_length=context, **_WORDPIECE_SPECIAL)


def _wordpiece(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _inner_letters(tokenizer: Tokenizer, texts: Iterable[str]) -> list[str]:
    """Entries for all characters that stand inside words, sorted."""
    normalised = (tokenizer.normalizer.normalize_str(text) for text in texts)
    words = {word for text in normalised for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)}
    return sorted({f"##{letter}" for word in words for letter in word[1:]})


def clip_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """CLIP's byte-pair encoding, 49,408 entries, with the ids of open_clip's tokenizer on clean text.

    Padding is the end token, as in Hugging Face's CLIP; the lengths tell which end token is the sentence's.

    Raises:
        ConfigError: when open_clip, which ships the vocabulary, is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ConfigError(
            "model.text.kind=clip needs the vocabulary that open_clip ships, which is not installed: "
            'pip install "ito_ray[clip]", or set model.text.kind=scratch.'
        ) from error
    file = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")[1 : _CLIP_MERGES + 1]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    letters = _byte_letters()
    entries = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), _CLIP_START, _CLIP_END]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=_CLIP_END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace("</w>", " "), decoders.Strip(right=1)]
    )
    ends = [(token, vocabulary[token]) for token in (_CLIP_START, _CLIP_END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_CLIP_START} $A {_CLIP_END}", special_tokens=ends
    )
    return _for_captions(
        tokenizer,
        model_max_length=context,
        bos_token=_CLIP_START,
        eos_token=_CLIP_END,
        unk_token=_CLIP_END,
        pad_token=_CLIP_END,
    )


def adopt_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Somebody's tokenizer, made one for captions. Raises ConfigError like `load_tokenizer`."""
    tokenizer = load_tokenizer(folder)
    given = {name: getattr(tokenizer, name) for name in (*_NAMES, *_SETTINGS)}
    return _for_captions(tokenizer.backend_tokenizer, **{name: value for name, value in given.items() if value})


def _for_captions(backend: Tokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of the general class: those of a model's own class build parts of their backend anew on loading."""
    from transformers import PreTrainedTokenizerFast  # seconds to import, and not every user of this module needs it

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, split_special_tokens=True, **settings)
    backend = tokenizer.backend_tokenizer
    steps = [
        normalizers.Replace(Regex(f"[{''.join(map(_escaped, INVISIBLE))}]"), ""),
        normalizers.NFKC(),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    # Some vocabularies hold the special tokens as words, which are found without their being special.
    for name in tokenizer.all_special_tokens:
        if (
            name != tokenizer.unk_token
            and backend.token_to_id(name) in backend.encode(name, add_special_tokens=False).ids
        ):
            steps.append(normalizers.Replace(name, f"{name[0]} {name[1:]}"))
    own = [backend.normalizer] if backend.normalizer else []
    backend.normalizer = normalizers.Sequence([*steps, *own])
    return tokenizer


def _escaped(code: int) -> str:
    return f"\\x{{{code:x}}}"


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """A saved tokenizer, without asking the network or running code from the folder.

    Raises:
        ConfigError: when the folder has no tokenizer, or one without a fast version, or one that cannot pad.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, split_special_tokens=True
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{str(folder)!r} holds no tokenizer that can be read ({str(error).splitlines()[0]}): give a folder "
            "written by save_pretrained, with tokenizer.json and tokenizer_config.json."
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ConfigError(
            f"The tokenizer in {str(folder)!r} has no fast version ({type(tokenizer).__name__}): save one that has a "
            "tokenizer.json."
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(
                f"The tokenizer in {str(folder)!r} has neither a pad nor an end token: set its pad_token and save it."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int) -> Tokens:
    """Ids of cleaned texts, cut to `context` tokens (the end token stays), T = the longest of the batch.

    Of a very long text only the part is looked at that can be within `context`.
    """
    if not texts:
        return Tokens(np.zeros((0, 0), np.int32), np.zeros(0, np.int32))
    # The Rust tokenizer itself: the wrapper's call costs several times the tokenizing.
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.enable_truncation(context, direction=tokenizer.truncation_side)
    most = context * _LONGEST_TOKEN
    within = slice(most) if tokenizer.truncation_side == "right" else slice(-most, None)
    encoded = [encoding.ids for encoding in backend.encode_batch_fast([text[within] for text in texts])]
    lengths = np.array([len(ids) for ids in encoded], np.int32)
    ids = np.full((len(texts), int(lengths.max())), tokenizer.pad_token_id, np.int32)
    for row, text_ids in zip(ids, encoded, strict=True):
        row[: len(text_ids)] = text_ids
    return Tokens(ids, lengths)


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes, in the vocabulary's order: printable ones first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printable), *(chr(256 + index) for index in range(256 - len(printable)))]
