"""An encoder and a configuration in, a report out: the chosen evaluators in turn, on the same embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError
from ito_ray.evaluation.classes import read_classes, read_templates
from ito_ray.evaluation.encoder import Encoder
from ito_ray.evaluation.evaluators import choose
from ito_ray.evaluation.measures import RECALLS, TOPS, geometry_measures, retrieval_measures, zero_shot_measures
from ito_ray.evaluation.report import Measure, Report, Section
from ito_ray.evaluation.subject import Passes, Subject, one_pass

__all__ = [
    "criteria",
    "evaluate",
    "geometry_measures",
    "read_classes",
    "read_templates",
    "retrieval_measures",
    "shares",
    "zero_shot_measures",
]


def evaluate(
    encoder: Encoder,
    cfg: Config,
    *,
    evaluators: Sequence[str] | None = None,
    limit: int | None = None,
    captions: int | None = None,
    thumbnail: int = 0,
    probe: Sequence[str] = (),
    passes: Passes = one_pass,
) -> Report:
    """Measure an encoder on cfg.data.heldout (pairs) and on cfg.eval.zero_shot (labelled pictures).

    Args:
        encoder: what to measure.
        cfg: its `data` and `eval` sections are used.
        evaluators: names of `EVALUATORS`; None = retrieval, geometry and zero_shot, as far as there is data.
        limit: read so many samples only, the first ones, of each of the two sets; None = all.
        captions: how many captions of an image count, the first ones; None = cfg.eval.captions.
        thumbnail: longest side in pixels of the small pictures kept in `Report.pairs`; 0 = none.
        probe: labelled pictures that probes are fitted to; empty = half of the labelled ones.
        passes: how the sets are gone through; `ito_ray.runtime.evaluate` has one for Ray workers.

    Raises:
        ConfigError: no set is given, an unknown evaluator or one without its data, or a wrong class file.
        DataError: data that cannot be read or give nothing; an encoder that gives NaN.
    """
    has_pairs, has_labelled = bool(cfg.data.heldout), bool(cfg.eval.zero_shot)
    if not has_pairs and not has_labelled:
        raise ConfigError(
            "data.heldout and eval.zero_shot are both empty: give shards of at least one of them to evaluate on."
        )
    chosen = choose(evaluators, pairs=has_pairs, labelled=has_labelled)
    captions = cfg.eval.captions if captions is None else captions
    subject = Subject(encoder, cfg, limit, captions, thumbnail, probe, passes)
    measures: list[Measure] = []
    sections: list[Section] = []
    for evaluator in chosen.values():
        found = evaluator.run(subject)
        measures += found.measures
        sections += found.sections
    pairs = subject.pairs if "pairs" in vars(subject) else None  # not embedded for nothing
    names = subject.class_names if "labelled" in vars(subject) else ()
    return Report(encoder.name, tuple(measures), dict(subject.dropped), pairs, names, tuple(sections))


def shares(cfg: Config) -> tuple[str, ...]:
    """Names of the shares that `evaluate` measures with this configuration: what two encoders can be compared by."""
    retrieved = (f"heldout/r{k}_{way}" for way in ("text_to_image", "image_to_text") for k in RECALLS)
    classified = (*(f"zero_shot/top{k}" for k in TOPS), "zero_shot/mean_per_class")
    return (*(retrieved if cfg.data.heldout else ()), *(classified if cfg.eval.zero_shot else ()))


def criteria(cfg: Config) -> dict[str, bool]:
    """Metrics of `evaluate` that say which of two encoders is better, and whether a larger value does."""
    ranks = [f"heldout/median_rank_{way}" for way in ("text_to_image", "image_to_text")] if cfg.data.heldout else []
    return dict.fromkeys(shares(cfg), True) | dict.fromkeys(ranks, False)
