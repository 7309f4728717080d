"""Embeddings to measures: retrieval, geometry, zero-shot classification, each with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from ito_ray.evaluation import geometry
from ito_ray.evaluation.embed import LabelledEmbeddings, PairEmbeddings
from ito_ray.evaluation.encoder import Embeddings, Encoder
from ito_ray.evaluation.intervals import bootstrap_median_ci, half_sample_ci
from ito_ray.evaluation.report import CONFIDENCE, Measure, Sample, Unit
from ito_ray.evaluation.retrieval import Ranks, retrieval
from ito_ray.evaluation.similarity import chunks
from ito_ray.evaluation.zero_shot import ZeroShot, class_embeddings, zero_shot

RECALLS = (1, 5, 10)
TOPS = (1, 5)
GEOMETRY = tuple(
    f"geometry/{name}"
    for name in (
        "modality_gap",
        "linear_separability",
        "alignment",
        "uniformity_image",
        "uniformity_text",
        "effective_rank_image",
        "effective_rank_text",
    )
)
"""Names of what `geometry_measures` gives; of fewer than four pairs only the first."""
GEOMETRY_PAIRS = 2000
"""Uniformity compares every pair of these."""
_UNITS = 512
"""Lots that the interval of the modality gap draws halves of."""


def retrieval_measures(pairs: PairEmbeddings) -> list[Measure]:
    """Recalls and median ranks both ways, and the sizes.

    Captions of one image are not independent, and neither are images that have a caption in common: intervals draw
    whole images, and those together.
    """
    answers = pairs.answers
    found = retrieval(pairs.image, pairs.text, pairs.owner, answers.number_M)
    image_groups_N = answers.groups_N
    text_groups_M = pairs.owner if image_groups_N is None else image_groups_N[pairs.owner]
    measures: list[Measure] = []
    directions: tuple[tuple[str, str, Ranks], ...] = (
        ("text_to_image", "Text → image", found.text_to_image),
        ("image_to_text", "Image → text", found.image_to_text),
    )
    for slug, label, ranks in directions:
        groups = text_groups_M if slug == "text_to_image" else image_groups_N
        for k in RECALLS:
            name, chance = f"heldout/r{k}_{slug}", ranks.chance(k)
            measures.append(Measure.share(name, f"{label}, R@{k}", Sample(ranks.hits(k), groups), chance))
        measures.append(
            Measure(
                name=f"heldout/median_rank_{slug}",
                label=f"{label}, median rank of {ranks.candidates:,}",
                value=ranks.median,
                unit="rank",
                interval=bootstrap_median_ci(ranks.rank, groups=groups, confidence=CONFIDENCE),
                chance=ranks.chance_median,
            )
        )
    return [
        *measures,
        Measure("heldout/pairs", "held-out images", len(pairs.keys), "count"),
        Measure("heldout/captions", "captions", len(pairs.captions), "count"),
        Measure("heldout/shared_captions", "captions that several images have", answers.shared, "count"),
    ]


def geometry_measures(pairs: PairEmbeddings) -> list[Measure]:
    """The modality gap over everything; the rest over each image and its first caption, GEOMETRY_PAIRS at most."""
    first = np.unique(pairs.owner, return_index=True)[1][:GEOMETRY_PAIRS]
    image_nD, text_nD = torch.from_numpy(pairs.image[:GEOMETRY_PAIRS]), torch.from_numpy(pairs.text[first])
    measures = [_gap(pairs)]
    if len(image_nD) < 4:
        return measures  # a rule for the modality needs two pairs to learn from and two to be asked about

    def measure(name: str, label: str, statistic: Callable[[NDArray[np.int64]], float]) -> Measure:
        value = statistic(np.arange(len(image_nD)))
        interval = half_sample_ci(statistic, len(image_nD), value, confidence=CONFIDENCE) if len(image_nD) > 7 else None
        unit: Unit = "rank" if name.startswith("effective_rank") else "distance"
        return Measure(f"geometry/{name}", label, value, unit, interval=interval)

    def rank_of(embedding_nD: torch.Tensor) -> Callable[[NDArray[np.int64]], float]:
        return lambda half: geometry.effective_rank(embedding_nD[half])

    def uniformity_of(embedding_nD: torch.Tensor) -> Callable[[NDArray[np.int64]], float]:
        return partial(_uniformity, _kernel(embedding_nD))

    return [
        *measures,
        measure(
            "linear_separability",
            "Modality told by a linear rule",
            lambda half: geometry.linear_separability(image_nD[half], text_nD[half]),
        ),
        measure("alignment", "Alignment of the pairs", lambda half: geometry.alignment(image_nD[half], text_nD[half])),
        measure("uniformity_image", "Uniformity, images", uniformity_of(image_nD)),
        measure("uniformity_text", "Uniformity, texts", uniformity_of(text_nD)),
        measure("effective_rank_image", "Effective rank, images", rank_of(image_nD)),
        measure("effective_rank_text", "Effective rank, texts", rank_of(text_nD)),
    ]


def zero_shot_measures(
    encoder: Encoder,
    labelled: LabelledEmbeddings,
    names: Sequence[str],
    templates: Sequence[str],
    batch: int,
) -> list[Measure]:
    """Prompts embedded, then as `classified_measures`."""
    return classified_measures(labelled, class_embeddings(encoder, names, templates, batch=batch), names)


def classified_measures(labelled: LabelledEmbeddings, class_KD: Embeddings, names: Sequence[str]) -> list[Measure]:
    """Top-1, top-5 and mean per class; intervals draw whole classes, since a class is hard or easy as a whole."""
    found = zero_shot(labelled.image, labelled.labels, class_KD, names)
    return [
        *(
            Measure.share(
                f"zero_shot/top{k}", f"Zero-shot, top {k}", Sample(found.hits(k), found.labels), found.chance(k)
            )
            for k in TOPS
        ),
        mean_per_class("zero_shot/mean_per_class", "Zero-shot, mean per class", found),
        Measure("zero_shot/classes", "classes", len(class_KD), "count"),
        Measure("zero_shot/images", "classified images", len(labelled.labels), "count"),
    ]


def mean_per_class(name: str, label: str, found: ZeroShot) -> Measure:
    """Top-1 averaged over classes."""
    return Measure.share(name, label, Sample(found.per_class), found.chance(1))


def _gap(pairs: PairEmbeddings) -> Measure:
    """The gap of all; its interval draws halves of at most _UNITS lots of images, each with their captions."""
    value = geometry.modality_gap(torch.from_numpy(pairs.image), torch.from_numpy(pairs.text))
    n = len(pairs.keys)
    measure = Measure("geometry/modality_gap", "Modality gap", value, "distance")
    if n < 8:
        return measure
    lot_N = np.random.default_rng(0).permutation(n) % min(n, _UNITS)
    image_UD, image_U = _sums(pairs.image, lot_N)
    text_UD, text_U = _sums(pairs.text, lot_N[pairs.owner])

    def of(half: NDArray[np.int64]) -> float:
        image_D, text_D = image_UD[half].sum(0) / image_U[half].sum(), text_UD[half].sum(0) / text_U[half].sum()
        return float(np.linalg.norm(image_D - text_D))

    interval = half_sample_ci(of, len(image_U), value, confidence=CONFIDENCE)
    return Measure(measure.name, measure.label, value, "distance", interval=(max(0.0, interval[0]), interval[1]))


def _sums(rows_ND: Embeddings, lot_N: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum and number of the rows of each lot, a chunk at a time."""
    lots = int(lot_N.max()) + 1
    sum_UD = np.zeros((lots, rows_ND.shape[1]))
    for part in chunks(len(rows_ND), 65536):
        np.add.at(sum_UD, lot_N[part], rows_ND[part].astype(np.float64))
    return sum_UD, np.bincount(lot_N, minlength=lots)


def _kernel(embedding_nD: torch.Tensor) -> NDArray[np.float32]:
    """exp(−2‖x − y‖²) of every two unit vectors."""
    squared_nn = (2 - 2 * embedding_nD.float() @ embedding_nD.float().T).clamp_min(0)
    return np.asarray((-2 * squared_nn).exp().numpy(), dtype=np.float32)


def _uniformity(kernel_nn: NDArray[np.float32], chosen: NDArray[np.int64]) -> float:
    """`geometry.uniformity` of the chosen rows, from the kernel of all: a half costs no distances again."""
    picked_n = np.zeros(len(kernel_nn), dtype=np.float64)
    picked_n[chosen] = 1
    off_diagonal = picked_n @ (kernel_nn @ picked_n) - kernel_nn.diagonal().astype(np.float64) @ picked_n
    return float(np.log(off_diagonal / (len(chosen) * (len(chosen) - 1))))
