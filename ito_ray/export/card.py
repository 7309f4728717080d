"""What is known of how a model came to be: model_card.json, and the second half of every folder's README.md.

Only what a run recorded is written; anything else is called unknown. Other formats take it over from the folder that
they are made of.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ito_ray.config.schema import Config
from ito_ray.errors import ExportError
from ito_ray.export.checks import folder_manifest, manifest_digest, read_manifest, write_manifest
from ito_ray.export.parity import Verified
from ito_ray.export.sentence_transformer import write_json

FILE, README = "model_card.json", "README.md"
MARK = "\n<!-- how it came to be: from model_card.json -->\n"
UNKNOWN = "unknown"
LIMITS = """Texts and images are cut as said above: what is beyond the last token or outside the middle square is not
seen. Results hold for data like those they were measured on. Bias, safety and fairness were not measured; nor were
languages or kinds of pictures that the results do not name. Similarity is no proof that a text is true of an image."""


@dataclass(frozen=True)
class Origin:
    """Facts of a run; None and empty are unknown."""

    data: str | None = None
    """The training set, as people call it."""
    data_digest: str | None = None
    data_licence: str | None = None
    data_pairs_read: int | None = None
    recipe: str | None = None
    training: Mapping[str, str] = field(default_factory=dict)
    """Settings of the recipe that matter to a reader, by name."""
    git: str | None = None
    evaluated_on: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """95 %."""
    hardware: str | None = None
    seconds: float | None = None
    samples_per_second: float | None = None
    energy_kwh: float | None = None
    carbon_kg: float | None = None


def training_facts(cfg: Config, steps: int) -> dict[str, str]:
    """The settings that a card names, and how many steps the weights have seen."""
    method = cfg.method
    weight = f", fusion weight {method.fusion_weight:g}" if method.name == "ito" else ""
    if weight and method.fusion_weight:
        drop = method.fusion.caption_drop
        weight += f" ({method.fusion_schedule})" if method.fusion_schedule != "constant" else ""
        weight += f", {100 * drop:g} % of captions hidden from the fusion" if drop else ""
        weight += ", a fusion temperature of its own" if method.fusion.temperature == "own" else ""
    return {
        "method": f"{method.name}{weight}, {cfg.data.views.count} views, {cfg.data.captions} captions a sample",
        "steps": f"{steps:,} of {cfg.train.global_batch:,} pairs",
        "optimiser": f"{cfg.optim.name}, learning rate {cfg.optim.lr:g}, weight decay {cfg.optim.weight_decay:g}",
        "precision": cfg.train.precision,
        "seed": str(cfg.train.seed),
    }


def public_name(pattern: str) -> str:
    """The end of an address: neither a machine's folders nor an account nor a query leaves with the model."""
    bare = pattern.split("://", 1)[-1].split("?", 1)[0]
    return "/".join(part for part in bare.split("/")[-2:] if part and "@" not in part)


def write_origin(folder: Path, origin: Origin) -> None:
    """Write model_card.json and the second half of README.md; manifest.json, if there is one, follows.

    Args:
        folder: exported, with the README.md of its format.
        origin: what is known.
    """
    card = folder / README
    usage = card.read_text("utf-8").split(MARK)[0]
    card.write_text(f"{usage}{MARK}\n{render(origin)}", encoding="utf-8")
    write_json(folder / FILE, {"format": 1, **dataclasses.asdict(origin)})
    for name in (README, FILE):
        (folder / name).chmod(0o644)
    if (folder / "manifest.json").is_file():
        write_manifest(folder, read_manifest(folder)[0])


def read_origin(folder: Path) -> Origin:
    """What `write_origin` wrote; an empty Origin when there is no model_card.json.

    Raises:
        ExportError: the file is something else.
    """
    path = folder / FILE
    if not path.is_file():
        return Origin()
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        content.pop("format")
        content["intervals"] = {name: (low, high) for name, (low, high) in content["intervals"].items()}
        return Origin(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is not a model card that ito_ray wrote ({error}): export the run again.") from error


def with_origin(verified: Verified, origin: Origin) -> Verified:
    """`write_origin` into a verified folder, which stays verified: nothing but its card has changed.

    Raises:
        ExportError: the folder had changed since it was verified.
    """
    if manifest_digest(folder_manifest(verified.folder)) != verified.digest:
        raise ExportError(f"{verified.folder} has changed since it was verified: verify it again.")
    write_origin(verified.folder, origin)
    return dataclasses.replace(verified, digest=manifest_digest(folder_manifest(verified.folder)))


def render(origin: Origin) -> str:
    """The sections of the card, as Markdown."""
    settings = {"recipe": origin.recipe, **origin.training, "code": origin.git}
    compute = {
        "hardware": origin.hardware,
        "time": None if origin.seconds is None else f"{origin.seconds / 3600:.2f} h",
        "speed": None if origin.samples_per_second is None else f"{origin.samples_per_second:,.0f} pairs/s",
        "energy": None if origin.energy_kwh is None else f"{origin.energy_kwh:g} kWh",
        "carbon": None if origin.carbon_kg is None else f"{origin.carbon_kg:g} kg CO2e",
    }
    data = {
        "set": origin.data,
        "digest": origin.data_digest,
        "pairs read, repeats included": None if origin.data_pairs_read is None else f"{origin.data_pairs_read:,}",
        "licence": origin.data_licence,
    }
    sections = {
        "Data": _table(data),
        "Training": _table(settings),
        "Results": _results(origin),
        "Limits": LIMITS,
        "Compute": _table(compute),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items()) + "\n"


def _table(facts: Mapping[str, str | None]) -> str:
    lines = (f"| {name} | {_cell(fact)} |" for name, fact in facts.items())
    return "\n".join(("| | |", "|---|---|", *lines))


def _cell(fact: str | None) -> str:
    return (fact or UNKNOWN).replace("|", "\\|").replace("\n", " ")


def _results(origin: Origin) -> str:
    if not origin.metrics:
        return f"Results: {UNKNOWN}."
    return "\n".join(
        (
            f"Measured on: {_cell(origin.evaluated_on)}.",
            "",
            "| measure | value | 95 % interval |",
            "|---|---|---|",
            *_measures(origin),
        )
    )


def _measures(origin: Origin) -> Iterator[str]:
    for name, value in sorted(origin.metrics.items()):
        low_high = origin.intervals.get(name)
        spread = f"{low_high[0]:.4g} – {low_high[1]:.4g}" if low_high else ""
        yield f"| {_cell(name)} | {value:.4g} | {spread} |"
