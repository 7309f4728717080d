"""Which drawing goes where, in which colours, under which captions: deterministic for a seed."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from ito_ray.data.icons.fonts import TRAINING_FAMILIES, UNSEEN_FAMILY, Drawing, read_family
from ito_ray.data.icons.names import concept_of, with_article
from ito_ray.data.icons.render import Placement, colour_pairs, is_drawable, render
from ito_ray.data.write import Sample
from ito_ray.errors import ConfigError

Names = Literal["shared", "all", "tested"]
Split = Literal["train", "heldout", "unseen_artist"]
SPLITS: tuple[Split, ...] = ("train", "heldout", "unseen_artist")

# The bare name alone: averaging it with colour prompts mostly lowered top-1 (docs/log.md).
TEMPLATES = ("{}",)


@dataclass(frozen=True)
class IconPlan:
    """What to make. Counts are pictures; see `pipelines.prepare icons --help` for each field."""

    seed: int = 0
    names: Names = "shared"
    per_drawing: int = 4
    heldout: int = 1500
    unseen_per_class: int = 3
    placement: Placement = field(default_factory=Placement)

    def __post_init__(self) -> None:
        for name in ("per_drawing", "heldout", "unseen_per_class"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {value}: give a whole number of at least 1.")


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture to render: everything but its pixels. `key` also seeds its random draws."""

    key: str
    split: Split
    drawing: Drawing
    name: str
    """What it shows: the drawing's own name, or for the unseen artist the class."""
    foreground: str
    background: str
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The drawings in use.

    `training` are the drawings to learn from and `unseen` the held-out artist's. `alternatives`
    maps a concept to all its training names, the commonest first; `classes` are the zero-shot
    class names of `unseen`, sorted.
    """

    training: tuple[Drawing, ...]
    unseen: tuple[Drawing, ...]
    alternatives: Mapping[str, tuple[str, ...]]
    classes: tuple[str, ...]

    def class_of(self, drawing: Drawing) -> str:
        """The commonest training name of what is drawn."""
        return self.alternatives[concept_of(drawing.name)][0]


def read_catalogue(names: Names) -> Catalogue:
    """Read the fonts and choose the drawings.

    `shared`: of concepts that two or more training families draw; `tested`: of those that the unseen artist draws too.
    """
    drawings = [drawing for family in TRAINING_FAMILIES for drawing in read_family(family)]
    families: dict[str, set[str]] = defaultdict(set)
    for drawing in drawings:
        families[concept_of(drawing.name)].add(drawing.family)
    least = 1 if names == "all" else 2
    training = tuple(
        drawing for drawing in drawings if len(families[concept_of(drawing.name)]) >= least and is_drawable(drawing)
    )
    spoken: dict[str, Counter[str]] = defaultdict(Counter)
    for drawing in training:
        spoken[concept_of(drawing.name)][drawing.name] += 1
    alternatives = {
        concept: tuple(sorted(counts, key=lambda name: (-counts[name], name))) for concept, counts in spoken.items()
    }
    known = {drawing.name for drawing in training}
    unseen = tuple(drawing for drawing in read_family(UNSEEN_FAMILY) if drawing.name in known and is_drawable(drawing))
    if names == "tested":
        tested = {concept_of(drawing.name) for drawing in unseen}
        training = tuple(drawing for drawing in training if concept_of(drawing.name) in tested)
        alternatives = {concept: alternatives[concept] for concept in alternatives if concept in tested}
    classes = sorted({alternatives[concept_of(drawing.name)][0] for drawing in unseen})
    return Catalogue(training, unseen, alternatives, tuple(classes))


def plan_pictures(plan: IconPlan, catalogue: Catalogue) -> dict[Split, list[Picture]]:
    """List the pictures of each split, in the order in which they are to be written."""
    heldout = _plan_heldout(plan, catalogue)
    taken = {(item.drawing.id, item.foreground, item.background) for item in heldout}
    pictures: dict[Split, list[Picture]] = {
        "train": _plan_train(plan, catalogue, taken),
        "heldout": heldout,
        "unseen_artist": _plan_unseen(plan, catalogue),
    }
    for split, items in pictures.items():
        # Shards are filled in this order, so neighbours must not show the same drawing.
        random.Random(f"{plan.seed}/order/{split}").shuffle(items)
    return pictures


def render_split(pictures: Sequence[Picture], plan: IconPlan, pool: Executor | None = None) -> Iterator[Sample]:
    """Render the planned pictures in order; a process pool changes the speed, never a byte."""
    one = partial(render_picture, plan=plan)
    return map(one, pictures) if pool is None else pool.map(one, pictures, chunksize=256)


def render_picture(picture: Picture, plan: IconPlan) -> Sample:
    """Render one picture."""
    drawing = picture.drawing
    rng = random.Random(f"{plan.seed}/pixels/{picture.key}")
    image = render(drawing, picture.foreground, picture.background, rng, plan.placement)
    meta = {
        "name": picture.name,
        "family": drawing.family,
        "drawing": drawing.id,
        "style": drawing.style,
        "foreground": picture.foreground,
        "background": picture.background,
        "split": picture.split,
    }
    return Sample(picture.key, image, picture.captions, meta)


def colour_caption(name: str, foreground: str, background: str) -> str:
    """`a red camera on a yellow background`."""
    return f"{with_article(foreground)} {name} on {with_article(background)} background"


def _plan_heldout(plan: IconPlan, catalogue: Catalogue) -> list[Picture]:
    rng = random.Random(f"{plan.seed}/heldout")
    drawings = list(catalogue.training)
    rng.shuffle(drawings)
    pairs = colour_pairs()
    used: set[tuple[str, str, str]] = set()
    pictures: list[Picture] = []
    for drawing in drawings:
        if len(pictures) == plan.heldout:
            break
        concept = concept_of(drawing.name)
        free = [pair for pair in pairs if (concept, *pair) not in used]
        if not free:
            continue
        front, back = rng.choice(free)
        used.add((concept, front, back))
        key = f"heldout-{len(pictures):06d}"
        names = _names_of(drawing, catalogue)
        # The caption that tells the pair from all others comes first: retrieval has one answer.
        captions = tuple(colour_caption(name, front, back) for name in names) + names
        pictures.append(Picture(key, "heldout", drawing, drawing.name, front, back, captions))
    if len(pictures) < plan.heldout:
        raise ConfigError(
            f"heldout is {plan.heldout}, but these {len(drawings)} drawings give at most "
            f"{len(pictures)} pairs: ask for fewer or use names=all."
        )
    return pictures


def _plan_train(plan: IconPlan, catalogue: Catalogue, taken: set[tuple[str, str, str]]) -> list[Picture]:
    rng = random.Random(f"{plan.seed}/train")
    pairs = colour_pairs()
    pictures: list[Picture] = []
    for drawing in catalogue.training:
        free = [pair for pair in pairs if (drawing.id, *pair) not in taken]
        names = _names_of(drawing, catalogue)
        for front, back in rng.choices(free, k=plan.per_drawing):
            coloured = colour_caption(rng.choice(names), front, back)
            captions = (names[0], coloured, *names[1:])
            key = f"train-{len(pictures):06d}"
            pictures.append(Picture(key, "train", drawing, drawing.name, front, back, captions))
    return pictures


def _plan_unseen(plan: IconPlan, catalogue: Catalogue) -> list[Picture]:
    rng = random.Random(f"{plan.seed}/unseen_artist")
    by_class: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in catalogue.unseen:
        by_class[catalogue.class_of(drawing)].append(drawing)
    pairs = colour_pairs()
    pictures: list[Picture] = []
    for name in catalogue.classes:
        drawings = by_class[name]
        for drawing in rng.sample(drawings, min(plan.unseen_per_class, len(drawings))):
            front, back = rng.choice(pairs)
            captions = (name, colour_caption(name, front, back))
            key = f"unseen-{len(pictures):06d}"
            pictures.append(Picture(key, "unseen_artist", drawing, name, front, back, captions))
    return pictures


def _names_of(drawing: Drawing, catalogue: Catalogue) -> tuple[str, ...]:
    """The drawing's own name, then what other families call the same thing."""
    others = catalogue.alternatives[concept_of(drawing.name)]
    return (drawing.name, *(name for name in others if name != drawing.name))
