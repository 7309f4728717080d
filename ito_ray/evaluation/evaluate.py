"""Everything at once: retrieval on held-out pairs, zero-shot classification, the modality gap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from ito_ray.config.schema import Config
from ito_ray.data.heldout import HeldoutReader
from ito_ray.data.shards import open_fs
from ito_ray.errors import ConfigError
from ito_ray.evaluation import geometry
from ito_ray.evaluation.embed import LabelledEmbeddings, PairEmbeddings, embed_labelled, embed_pairs
from ito_ray.evaluation.encoder import Encoder
from ito_ray.evaluation.report import Measure, Report, Sample
from ito_ray.evaluation.retrieval import Ranks, retrieval
from ito_ray.evaluation.zero_shot import class_embeddings, zero_shot

RECALLS = (1, 5, 10)
TOPS = (1, 5)
GEOMETRY_PAIRS = 2000
"""Uniformity compares every pair of these."""


def evaluate(
    encoder: Encoder,
    cfg: Config,
    *,
    limit: int | None = None,
    captions: int | None = None,
    thumbnail: int = 0,
) -> Report:
    """Measure an encoder on cfg.data.heldout (retrieval, gap) and on cfg.eval.zero_shot (classification).

    Args:
        encoder: what to measure.
        cfg: its `data` and `eval` sections are used.
        limit: read so many samples only, the first ones, of each of the two sets; None = all.
        captions: how many captions of an image count, the first ones; None = cfg.eval.captions.
        thumbnail: longest side in pixels of the small pictures kept in `Report.pairs`; 0 = none.

    Raises:
        ConfigError: neither set is given, or zero-shot without a readable class file.
        DataError: shards that cannot be read or give nothing; an encoder that gives NaN.
    """
    if not cfg.data.heldout and not cfg.eval.zero_shot:
        raise ConfigError(
            "data.heldout and eval.zero_shot are both empty: give shards of at least one of them to evaluate on."
        )
    measures: list[Measure] = []
    dropped: Counter[str] = Counter()
    pairs: PairEmbeddings | None = None
    names: tuple[str, ...] = ()
    if cfg.data.heldout:
        reader = _reader(cfg, cfg.data.heldout, limit, "data.heldout")
        captions = cfg.eval.captions if captions is None else captions
        pairs = embed_pairs(encoder, reader, cfg.eval.batch, captions=captions, thumbnail=thumbnail)
        dropped.update(reader.tally.dropped)
        measures += retrieval_measures(pairs)
    if cfg.eval.zero_shot:
        names, templates = read_classes(cfg.eval.classes), read_templates(cfg.eval.templates)
        reader = _reader(cfg, cfg.eval.zero_shot, limit, "eval.zero_shot")
        index = {name: i for i, name in enumerate(names)}
        labelled = embed_labelled(encoder, reader, index, cfg.eval.zero_shot_field, cfg.eval.batch)
        dropped.update(reader.tally.dropped)
        dropped.update({"class_not_listed": labelled.left_out} if labelled.left_out else {})
        measures += zero_shot_measures(encoder, labelled, names, templates, cfg.eval.batch)
    return Report(encoder.name, tuple(measures), dict(dropped), pairs, names)


def shares(cfg: Config) -> tuple[str, ...]:
    """Names of the shares that `evaluate` measures with this configuration: what two encoders can be compared by."""
    retrieved = (f"heldout/r{k}_{way}" for way in ("text_to_image", "image_to_text") for k in RECALLS)
    classified = (*(f"zero_shot/top{k}" for k in TOPS), "zero_shot/mean_per_class")
    return (*(retrieved if cfg.data.heldout else ()), *(classified if cfg.eval.zero_shot else ()))


def retrieval_measures(pairs: PairEmbeddings) -> list[Measure]:
    """Recalls and median ranks both ways, the modality gap and the sizes.

    Captions of one image are not independent, so text-to-image intervals draw whole images.
    """
    found = retrieval(pairs.image, pairs.text, pairs.owner)
    measures: list[Measure] = []
    directions: tuple[tuple[str, str, Ranks], ...] = (
        ("text_to_image", "Text → image", found.text_to_image),
        ("image_to_text", "Image → text", found.image_to_text),
    )
    for slug, label, ranks in directions:
        groups = pairs.owner if slug == "text_to_image" else None
        for k in RECALLS:
            measures.append(
                Measure.share(f"heldout/r{k}_{slug}", f"{label}, R@{k}", Sample(ranks.hits(k), groups), ranks.chance(k))
            )
        measures.append(
            Measure(
                name=f"heldout/median_rank_{slug}",
                label=f"{label}, median rank of {ranks.candidates:,}",
                value=ranks.median,
                unit="rank",
                chance=ranks.chance_median,
            )
        )
    return [
        *measures,
        *geometry_measures(pairs),
        Measure("heldout/pairs", "held-out images", len(pairs.keys), "count"),
        Measure("heldout/captions", "captions", len(pairs.captions), "count"),
    ]


def geometry_measures(pairs: PairEmbeddings) -> list[Measure]:
    """The modality gap over everything; the rest over each image and its first caption, GEOMETRY_PAIRS at most."""
    image_ND, text_MD = torch.from_numpy(pairs.image), torch.from_numpy(pairs.text)
    _, first = np.unique(pairs.owner, return_index=True)
    image_nD, text_nD = image_ND[:GEOMETRY_PAIRS], text_MD[torch.from_numpy(first)][:GEOMETRY_PAIRS]
    measures = [Measure("geometry/modality_gap", "Modality gap", geometry.modality_gap(image_ND, text_MD), "distance")]
    if len(image_nD) < 4:
        return measures  # a rule for the modality needs two pairs to learn from and two to be asked about
    separable, ranks = geometry.linear_separability(image_nD, text_nD), geometry.effective_rank
    return [
        *measures,
        Measure("geometry/linear_separability", "Modality told by a linear rule", separable, "distance"),
        Measure("geometry/alignment", "Alignment of the pairs", geometry.alignment(image_nD, text_nD), "distance"),
        Measure("geometry/uniformity_image", "Uniformity, images", geometry.uniformity(image_nD), "distance"),
        Measure("geometry/uniformity_text", "Uniformity, texts", geometry.uniformity(text_nD), "distance"),
        Measure("geometry/effective_rank_image", "Effective rank, images", ranks(image_nD), "rank"),
        Measure("geometry/effective_rank_text", "Effective rank, texts", ranks(text_nD), "rank"),
    ]


def zero_shot_measures(
    encoder: Encoder,
    labelled: LabelledEmbeddings,
    names: Sequence[str],
    templates: Sequence[str],
    batch: int,
) -> list[Measure]:
    """Top-1, top-5 and mean per class; intervals draw whole classes, since a class is hard or easy as a whole."""
    class_KD = class_embeddings(encoder, names, templates, batch=batch)
    found = zero_shot(labelled.image, labelled.labels, class_KD)
    measures = [
        Measure.share(f"zero_shot/top{k}", f"Zero-shot, top {k}", Sample(found.hits(k), found.labels), found.chance(k))
        for k in TOPS
    ]
    return [
        *measures,
        Measure.share(
            "zero_shot/mean_per_class", "Zero-shot, mean per class", Sample(found.per_class), found.chance(1)
        ),
        Measure("zero_shot/classes", "classes", len(names), "count"),
        Measure("zero_shot/images", "classified images", len(labelled.labels), "count"),
    ]


def read_classes(path: str) -> tuple[str, ...]:
    """Class names, one a line, in order; blank lines do not count.

    Raises:
        ConfigError: no such file, no name in it, or a name twice (the tie could never be won).
    """
    if not path:
        raise ConfigError(
            "eval.classes is empty, but eval.zero_shot is given: name a text file with one class name a line."
        )
    names = _lines(path, "eval.classes")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(f"eval.classes={path} has {twice[0]!r} more than once: keep one line for each class.")
    return names


def read_templates(path: str) -> tuple[str, ...]:
    """Prompts, one a line, each with {} for the class name; the bare name when no file is given.

    Raises:
        ConfigError: no such file, no prompt in it, or a prompt without {}.
    """
    if not path:
        return ("{}",)
    templates = _lines(path, "eval.templates")
    for template in templates:
        if "{}" not in template:
            raise ConfigError(
                f"eval.templates={path} has the prompt {template!r} without {{}}: write {{}} where the class name goes."
            )
    return templates


def _lines(path: str, field: str) -> tuple[str, ...]:
    try:
        fs, inner = open_fs(path)
        with fs.open(inner, "rb") as file:
            text: str = file.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{field}={path} cannot be read as UTF-8 text ({error}): give a text file.") from error
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise ConfigError(f"{field}={path} has no line: write one entry a line.")
    return lines


def _reader(cfg: Config, patterns: Sequence[str], limit: int | None, field: str) -> HeldoutReader:
    return HeldoutReader(patterns, cfg.data.columns, limit=limit, max_pixels=cfg.data.max_pixels, field=field)
