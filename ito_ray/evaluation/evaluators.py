"""The evaluators by name. Each is a function of a `Subject`; a new one is a function and a line of `EVALUATORS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ito_ray.errors import ConfigError, did_you_mean
from ito_ray.evaluation import robustness
from ito_ray.evaluation.confusion import confusion_section, first_choice
from ito_ray.evaluation.encoder import Embeddings
from ito_ray.evaluation.measures import (
    classified_measures,
    geometry_measures,
    mean_per_class,
    retrieval_measures,
)
from ito_ray.evaluation.report import Grid, Measure, Picture, Sample, Section
from ito_ray.evaluation.retrieval import retrieval
from ito_ray.evaluation.subject import Finding, Subject
from ito_ray.evaluation.zero_shot import ZeroShot, zero_shot

if TYPE_CHECKING:
    from ito_ray.evaluation.probe import Split

Need = Literal["pairs", "labelled", "either"]
_WAYS: Mapping[Need, str] = MappingProxyType(
    {
        "pairs": "data.heldout (--heldout)",
        "labelled": "eval.zero_shot (--zero-shot)",
        "either": "data.heldout or eval.zero_shot (--heldout, --zero-shot)",
    }
)


_How = NDArray[np.int64] | None
_SAMPLES = "{:,} samples."


@dataclass(frozen=True)
class Evaluator:
    """A function, what it needs, and whether it is run when nobody chose."""

    run: Callable[[Subject], Finding]
    needs: Need
    default: bool = False

    def has(self, *, pairs: bool, labelled: bool) -> bool:
        """Whether the sets that it needs are there."""
        return {"pairs": pairs, "labelled": labelled, "either": pairs or labelled}[self.needs]


def choose(names: Sequence[str] | None, *, pairs: bool, labelled: bool) -> dict[str, Evaluator]:
    """The evaluators of these names, in this order; None = the cheap ones that have their data.

    Raises:
        ConfigError: an unknown name (the nearest is named), or data missing.
    """
    if names is None:
        return {n: e for n, e in EVALUATORS.items() if e.default and e.has(pairs=pairs, labelled=labelled)}
    for name in names:
        if name not in EVALUATORS:
            raise ConfigError(f"--evaluators {name}: there is {', '.join(EVALUATORS)}.{did_you_mean(name, EVALUATORS)}")
        needed = EVALUATORS[name]
        if not needed.has(pairs=pairs, labelled=labelled):
            raise ConfigError(f"--evaluators {name} needs {_WAYS[needed.needs]}: give such a set, or leave it out.")
    return {name: EVALUATORS[name] for name in dict.fromkeys(names)}


def run_retrieval(subject: Subject) -> Finding:
    """Recalls and median ranks."""
    return Finding(tuple(retrieval_measures(subject.pairs)))


def run_geometry(subject: Subject) -> Finding:
    """Gap, separability, alignment, uniformity, effective ranks."""
    return Finding(tuple(geometry_measures(subject.pairs)))


def run_zero_shot(subject: Subject) -> Finding:
    """Classification by prompts, and the confusions."""
    labelled, class_KD, names = subject.labelled, subject.class_embeddings, subject.class_names
    found = zero_shot(labelled.image, labelled.labels, class_KD, names)
    choice_N = first_choice(labelled.image, class_KD, found)
    measures = classified_measures(labelled, class_KD, names)
    return Finding(tuple(measures), (confusion_section(found, choice_N, names),))


def run_linear_probe(subject: Subject) -> Finding:
    """Logistic regression on frozen image features."""
    from ito_ray.evaluation import probe  # scikit-learn takes a second

    parts = _split(subject)
    hits, c = probe.linear_probe(parts)
    found = ZeroShot(np.where(hits, 1, 2), parts.test_m, classes=parts.classes)
    return Finding(
        (
            Measure.share("linear_probe/top1", "Linear probe, top 1", Sample(hits, parts.test_m), found.chance(1)),
            mean_per_class("linear_probe/mean_per_class", "Linear probe, mean per class", found),
            Measure("linear_probe/c", "Inverse strength of the probe’s L2", c, "rank", detail=True),
            Measure("linear_probe/train", "images the probe was fitted to", len(parts.train_n), "count"),
            Measure("linear_probe/test", "images the probe was asked about", len(parts.test_m), "count"),
        )
    )


def run_knn(subject: Subject) -> Finding:
    """Nearest neighbours of frozen image features."""
    from ito_ray.evaluation import probe

    parts = _split(subject)
    return Finding(
        tuple(
            Measure.share(
                f"knn/top1_k{k}",
                f"{k} nearest neighbour{'s' * (k > 1)}, top 1",
                Sample(probe.nearest(parts, k), parts.test_m),
                1 / parts.classes,
            )
            for k in probe.NEIGHBOURS
            if k <= len(parts.train_n)
        )
    )


def run_robustness(subject: Subject) -> Finding:
    """The first pictures again, each under every change."""
    changes = robustness.image_changes()
    measures: list[Measure] = []
    sections: list[Section] = []

    def add(
        task: str, label: str, clean: NDArray[np.bool_], hits: Mapping[str, NDArray[np.bool_]], **how: _How
    ) -> None:
        measures.extend(_again("robustness", task, f"{label} under changed pictures", clean, hits, **how))
        sections.append(_image_section(task, label, clean, hits))

    if subject.cfg.eval.zero_shot:
        changed = subject.changed_labelled(changes, robustness.MOST)
        n = len(next(iter(changed.values())))
        labels_n, class_KD = subject.labelled.labels[:n], subject.class_embeddings

        def right(image_nD: Embeddings) -> NDArray[np.bool_]:
            return zero_shot(image_nD, labels_n, class_KD, subject.class_names).hits(1)

        hits = {name: right(image_nD) for name, image_nD in changed.items()}
        add("zero_shot_top1", "Zero-shot, top 1", right(subject.labelled.image[:n]), hits, groups=labels_n)
    if subject.cfg.data.heldout:
        changed = subject.changed_pairs(changes, robustness.MOST)
        text_mD, owner_m, number_m = _first_texts(subject, len(next(iter(changed.values()))))

        def found(image_nD: Embeddings) -> NDArray[np.bool_]:
            return retrieval(image_nD, text_mD, owner_m, number_m).image_to_text.hits(1)

        hits = {name: found(image_nD) for name, image_nD in changed.items()}
        add("r1_image_to_text", "Image → text, R@1", found(subject.pairs.image[: owner_m.max() + 1]), hits)
    return Finding(tuple(measures), tuple(sections))


def run_text_robustness(subject: Subject) -> Finding:
    """The same texts with typos, in capitals and in other frames."""
    changes = robustness.text_changes()
    measures: list[Measure] = []
    sections: list[Section] = []

    def add(
        task: str, label: str, clean: NDArray[np.bool_], hits: Mapping[str, NDArray[np.bool_]], **how: _How
    ) -> None:
        measures.extend(_again("text_robustness", task, f"{label} under changed texts", clean, hits, **how))
        rows = [("as it is", _percent(clean)), *((_say(name), _percent(one)) for name, one in hits.items())]
        sections.append(
            Section(f"Changed texts: {label}", _SAMPLES.format(len(clean)), (), (Grid(("Text", label), tuple(rows)),))
        )

    if subject.cfg.eval.zero_shot:
        labelled = subject.labelled

        def right(change: Callable[[str], str]) -> NDArray[np.bool_]:
            names = [change(name) for name in subject.class_names]
            class_KD = subject.embed_classes(names, subject.labels.templates)
            return zero_shot(labelled.image, labelled.labels, class_KD, names).hits(1)

        hits = {name: right(change) for name, change in changes.items()}
        clean = zero_shot(labelled.image, labelled.labels, subject.class_embeddings, subject.class_names).hits(1)
        add("zero_shot_top1", "Zero-shot, top 1", clean, hits, groups=labelled.labels)
    if subject.cfg.data.heldout:
        image_nD = subject.pairs.image[: robustness.MOST]
        text_mD, owner_m, number_m = _first_texts(subject, len(image_nD))
        captions = subject.pairs.captions[: len(owner_m)]

        def found(text_mD: Embeddings) -> NDArray[np.bool_]:
            return retrieval(image_nD, text_mD, owner_m, number_m).text_to_image.hits(1)

        def encode(change: Callable[[str], str]) -> Embeddings:
            return subject.encoder.encode_texts([change(caption) for caption in captions])

        hits = {name: found(encode(change)) for name, change in changes.items()}
        add("r1_text_to_image", "Text → image, R@1", found(text_mD), hits, groups=owner_m)
    return Finding(tuple(measures), tuple(sections))


EVALUATORS: Mapping[str, Evaluator] = MappingProxyType(
    {
        "retrieval": Evaluator(run_retrieval, "pairs", default=True),
        "geometry": Evaluator(run_geometry, "pairs", default=True),
        "zero_shot": Evaluator(run_zero_shot, "labelled", default=True),
        "linear_probe": Evaluator(run_linear_probe, "labelled"),
        "knn": Evaluator(run_knn, "labelled"),
        "robustness": Evaluator(run_robustness, "either"),
        "text_robustness": Evaluator(run_text_robustness, "either"),
    }
)


def _split(subject: Subject) -> Split:
    from ito_ray.evaluation import probe

    parts = probe.split(subject.labelled, subject.probe_set)
    if parts.left_out:
        subject.dropped["probe_class_on_one_side_only"] = parts.left_out
    return parts


def _first_texts(subject: Subject, images: int) -> tuple[Embeddings, NDArray[np.int64], NDArray[np.int64]]:
    """Captions of the first images, their images and numbers; captions come in the order of their images."""
    pairs = subject.pairs
    m = int(np.searchsorted(pairs.owner, images))
    return pairs.text[:m], pairs.owner[:m], pairs.answers.number_M[:m]


def _again(
    kind: str,
    task: str,
    label: str,
    clean: NDArray[np.bool_],
    hits: Mapping[str, NDArray[np.bool_]],
    groups: _How = None,
) -> list[Measure]:
    """The mean over all changes for the headline, each change as a detail, and the clean number on the same samples."""
    return [
        Measure.share(f"{kind}/{task}/mean", label, Sample(robustness.levels(hits), groups)),
        Measure.share(f"{kind}/{task}/unchanged", f"{label}: unchanged", Sample(clean, groups), detail=True),
        *(
            Measure.share(f"{kind}/{task}/{name}", f"{label}: {name}", Sample(one, groups), detail=True)
            for name, one in hits.items()
        ),
    ]


def _image_section(task: str, label: str, clean: NDArray[np.bool_], hits: Mapping[str, NDArray[np.bool_]]) -> Section:
    rows = []
    for kind, strengths in robustness.STRENGTHS.items():
        cells = (f"{_percent(hits[f'{kind}_{n}'])} ({strength:g})" for n, strength in enumerate(strengths, 1))
        rows.append((f"{kind}, {robustness.UNITS[kind]}", *cells))
    values = {
        kind: [float(hits[f"{kind}_{n}"].mean()) for n in range(1, 1 + len(strengths))]
        for kind, strengths in robustness.STRENGTHS.items()
    }
    picture = Picture(
        f"robustness_{task}",
        f"Curves of {label} against the strength of blur, noise, compression and low resolution, as in the table.",
        partial(_draw, float(clean.mean()), values, label),
    )
    header = ("Change", "weak", "middle", "strong")
    note = f"{_SAMPLES.format(len(clean))} Unchanged: {_percent(clean)}. In brackets: the strength."
    return Section(f"Changed pictures: {label}", note, (picture,), (Grid(header, tuple(rows)),))


def _draw(clean: float, values: Mapping[str, Sequence[float]], label: str, path: Path) -> None:
    from ito_ray.evaluation.charts import (
        strengths_png,
    )  # matplotlib takes a second, and a training worker draws nothing

    strengths_png(clean, values, label, path)


def _percent(hits: NDArray[np.bool_]) -> str:
    return f"{100 * float(hits.mean()):.1f} %"


def _say(name: str) -> str:
    kind, _, number = name.partition("_")
    if kind == "typos":
        return f"typos in {robustness.TYPO_RATES[int(number) - 1]:.0%} of the letters"
    return f"“{robustness.FRAMES[int(number) - 1].replace('{}', '…')}”" if kind == "frame" else "all in capitals"
