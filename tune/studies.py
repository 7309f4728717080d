"""Named studies: one recipe on one data set under several methods, seed by seed. What they found: docs/results.md.

A study holds everything equal but its arms. Trials of one seed start from the same weights of the towers and get the
same pictures in the same batches, so arms can be compared seed by seed.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ito_ray.config.load import overlay
from ito_ray.config.recipes import icons_cpu
from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError, DataError, did_you_mean
from tune.arms import PAPER, SPENDINGS, VARIANTS, Comparison
from tune.axes import Changes, apply

RETRIEVAL = tuple(f"heldout/r{k}_{way}" for way in ("image_to_text", "text_to_image") for k in (1, 5))
SMALL: Changes = {
    "model.image.size": 32,
    "model.image.kwargs": {**icons_cpu().model.image.kwargs, "output_stride": 16},
}
"""Of the quick studies: a stride of 16 instead of 32, so that the fusion has as many image tokens as at 48 px."""


@dataclass(frozen=True)
class Study:
    """What is compared, on what, and what it is tested on."""

    name: str
    base: Config
    """Of all arms. Its held-out pairs are validation data; it has no labelled set, which training would look at."""
    test: Mapping[str, Any]
    """Laid over a trial's configuration to measure it, once, when it has ended: the test sets."""
    headline: tuple[str, ...]
    """Test metrics that the figures show, shares."""
    prepare: tuple[str, ...]
    """The commands that make the data; FOLDER is where."""
    comparison: Comparison = PAPER

    @property
    def arms(self) -> dict[str, Changes]:
        """Changes of `base` by the arm's name."""
        return self.comparison.arms(self.base)

    def changed(self, changes: Changes) -> Study:
        """With another base, e.g. fewer steps.

        Raises:
            ConfigError: unknown fields, or values that do not fit.
        """
        return replace(self, base=apply(self.base, changes, source=f"study {self.name}"))

    def named(self, name: str) -> Study:
        """The same under another name."""
        return replace(self, name=name, base=self.base.model_copy(update={"name": name}))

    def require_data(self, folder: Path) -> None:
        """
        Raises:
            DataError: a set of the study is not there; says how to make it.
        """
        given = [*self.base.data.train, *self.base.data.heldout, *self.test["data"]["heldout"]]
        labelled = self.test.get("eval", {})
        given += [*labelled.get("zero_shot", ()), *(labelled[name] for name in ("classes",) if name in labelled)]
        missing = [path for path in given if not Path(path).exists()]
        if missing:
            made = " && ".join(self.prepare).replace("FOLDER", shlex.quote(str(folder)))
            raise DataError(f"--data {folder} has no {Path(missing[0]).relative_to(folder)}: make it with {made}")


def icons(folder: Path) -> Study:
    """Icons, tested on an artist that training never sees and on unseen combinations of drawing and colours.

    python -m pipelines.prepare icons --per-drawing 12 --per-shard 500 --out demo/ablation/icons
    python -m tune.ablation run icons --data demo/ablation/icons
    """
    return _icons("icons", folder, steps=800, warmup=200, every=100, prepare="--per-drawing 12")


def icons_quick(folder: Path) -> Study:
    """The same in about a minute a run: fewer steps, smaller pictures, and the things alone that the test artist draws.

    python -m pipelines.prepare icons --names tested --per-drawing 8 --per-shard 500 --out demo/ablation/icons_quick
    python -m tune.ablation run icons_quick --data demo/ablation/icons_quick
    """
    prepare = "--names tested --per-drawing 8"
    return _icons("icons_quick", folder, steps=160, warmup=50, every=32, prepare=prepare).changed(SMALL)


def icons_variants(folder: Path) -> Study:
    """Variants of ITO on the data of `icons_quick`: read-outs, depth, captions, and what is ours.

    python -m tune.ablation run icons_variants --data demo/ablation/icons_quick
    """
    return replace(icons_quick(folder), comparison=VARIANTS).named("icons_variants")


def _icons(name: str, folder: Path, *, steps: int, warmup: int, every: int, prepare: str) -> Study:
    heldout = [str(folder / "heldout" / f"heldout-{number:05d}.tar") for number in range(3)]
    return Study(
        name,
        _base(name, [folder / "train"], heldout[:1], steps=steps, warmup=warmup, every=every),
        {
            "data": {"heldout": tuple(heldout[1:])},
            "eval": {
                "zero_shot": (str(folder / "unseen_artist"),),
                "classes": str(folder / "classes.txt"),
                "templates": str(folder / "templates.txt"),
            },
        },
        ("zero_shot/top1", "zero_shot/top5", "heldout/r1_image_to_text", "heldout/r1_text_to_image"),
        (f"python -m pipelines.prepare icons {prepare} --per-shard 500 --out FOLDER",),
    )


def emoji(folder: Path) -> Study:
    """Emoji drawn by two teams, tested on the drawings of a third.

    The first caption is the emoji's Unicode name, so R@k from image to text is zero-shot top k over all names.

    python -m pipelines.prepare shards EMOJI/noto-*.tar EMOJI/openmoji-*.tar --val-fraction 0.1 \
        --out demo/ablation/emoji/known
    python -m pipelines.prepare shards EMOJI/twemoji-*.tar --out demo/ablation/emoji/unseen
    python -m tune.ablation run emoji --data demo/ablation/emoji
    """
    return _emoji("emoji", folder, steps=800, warmup=200, every=100)


def emoji_quick(folder: Path) -> Study:
    """The same in about two minutes a run: fewer steps, smaller pictures.

    python -m tune.ablation run emoji_quick --data demo/ablation/emoji
    """
    return _emoji("emoji_quick", folder, steps=240, warmup=60, every=40).changed(SMALL)


def emoji_variants(folder: Path) -> Study:
    """Variants of ITO on emoji.

    python -m tune.ablation run emoji_variants --data demo/ablation/emoji
    """
    return replace(emoji_quick(folder), comparison=VARIANTS).named("emoji_variants")


def emoji_spendings(folder: Path) -> Study:
    """Views, pairs in a batch, or steps, of equal compute, on emoji.

    python -m tune.ablation run emoji_spendings --data demo/ablation/emoji
    """
    return replace(emoji_quick(folder), comparison=SPENDINGS).named("emoji_spendings")


def _emoji(name: str, folder: Path, *, steps: int, warmup: int, every: int) -> Study:
    train, heldout = [folder / "known" / "train"], [folder / "known" / "val"]
    return Study(
        name,
        _base(name, train, heldout, steps=steps, warmup=warmup, every=every),
        {"data": {"heldout": (str(folder / "unseen" / "train"),)}},
        RETRIEVAL,
        (
            "python -m pipelines.prepare shards EMOJI/noto-*.tar EMOJI/openmoji-*.tar --val-fraction 0.1 "
            "--out FOLDER/known",
            "python -m pipelines.prepare shards EMOJI/twemoji-*.tar --out FOLDER/unseen",
        ),
    )


def clipart(folder: Path) -> Study:
    """Open Clip Art with its noisy titles and keywords, tested on held-out pairs.

    python -m pipelines.prepare shards CLIPART --val-fraction 0.3 --per-shard 400 --dedup exact \
        --out demo/ablation/clipart
    python -m tune.ablation run clipart --data demo/ablation/clipart
    """
    return _clipart("clipart", folder, steps=800, warmup=200, every=100)


def clipart_quick(folder: Path) -> Study:
    """The same in about two minutes a run: fewer steps, smaller pictures.

    python -m tune.ablation run clipart_quick --data demo/ablation/clipart
    """
    return _clipart("clipart_quick", folder, steps=240, warmup=60, every=40).changed(SMALL)


def _clipart(name: str, folder: Path, *, steps: int, warmup: int, every: int) -> Study:
    heldout = [str(folder / "val" / f"val-{number:05d}.tar") for number in range(3)]
    return Study(
        name,
        _base(name, [folder / "train"], heldout[:1], steps=steps, warmup=warmup, every=every),
        {"data": {"heldout": tuple(heldout[1:])}},
        RETRIEVAL,
        ("python -m pipelines.prepare shards CLIPART --val-fraction 0.3 --per-shard 400 --dedup exact --out FOLDER",),
    )


def _base(name: str, train: list[Path], heldout: list[Any], *, steps: int, warmup: int, every: int) -> Config:
    """The demo's towers and rates; validation pairs alone are looked at while training."""
    return overlay(
        icons_cpu(),
        {
            "name": name,
            "data": {"train": tuple(map(str, train)), "heldout": tuple(map(str, heldout))},
            "method": {"fusion": {"caption_drop": 0.0}},  # the paper's; an arm may change it
            "optim": {"warmup_steps": warmup},
            # One rank of one thread: two trials side by side keep both cores busy, and nobody waits for a gather.
            "train": {"steps": steps, "workers": 1, "log_every": 20, "checkpoint_every": 200},
            "eval": {"every": every, "max_samples": 500, "zero_shot": (), "classes": "", "templates": ""},
        },
        source=f"study {name}",
    )


STUDIES: dict[str, Callable[[Path], Study]] = {
    study.__name__: study
    for study in (
        *(icons, icons_quick, icons_variants),
        *(emoji, emoji_quick, emoji_variants, emoji_spendings),
        *(clipart, clipart_quick),
    )
}


def study(name: str, folder: Path) -> Study:
    """The study called `name`, on the data in `folder`.

    Raises:
        ConfigError: no such study; the nearest is named.
    """
    if name not in STUDIES:
        raise ConfigError(f"{name} is no study: there are {', '.join(STUDIES)}.{did_you_mean(name, STUDIES)}")
    return STUDIES[name](folder)
