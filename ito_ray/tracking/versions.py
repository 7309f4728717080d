"""The versions of a model, for people."""

from __future__ import annotations

from datetime import UTC, datetime

from mlflow.entities.model_registry import ModelVersion

from ito_ray.config.gate import TOP1
from ito_ray.tracking.aliases import CHAMPION, GATE, ROLLED_BACK, Registry, logged_model
from ito_ray.tracking.run import refusals

HEADLINE = {"t→i R@1": "heldout/r1_text_to_image", "i→t R@1": "heldout/r1_image_to_text", "top 1": TOP1}
ORIGIN = {
    "recipe": "ito.recipe",
    "λ": "ito.fusion_weight",
    "steps": "ito.steps",
    "data": "ito.data_digest",
    "config": "ito.config_digest",
}
SHORT = 10


def overview(registry: Registry) -> list[tuple[str, str, str, str, str, str, str]]:
    """A row for each version, newest first: version, aliases, made, gate, run, where it comes from, metrics.

    Raises:
        TrackingError: no such model.
    """
    versions = registry.versions()
    aliases = registry.aliases()
    return [_row(registry, one, [name for name, of in aliases.items() if of == str(one.version)]) for one in versions]


def _row(registry: Registry, version: ModelVersion, aliases: list[str]) -> tuple[str, str, str, str, str, str, str]:
    tags = version.tags
    made = datetime.fromtimestamp(int(version.creation_timestamp or 0) / 1000, UTC).strftime("%Y-%m-%d %H:%M")
    gate = tags.get(GATE, "")
    if ROLLED_BACK in tags and CHAMPION not in aliases:
        gate = f"rolled back: {tags[ROLLED_BACK]}"
    origin = [f"{label} {tags[tag]}" for label, tag in ORIGIN.items() if tag in tags]
    if commit := tags.get("mlflow.source.git.commit"):
        origin.append(f"git {commit[:SHORT]}{'-dirty' if commit.endswith('-dirty') else ''}")
    return (
        str(version.version),
        ", ".join(sorted(aliases)),
        made,
        gate,
        str(version.run_id or "")[:SHORT],
        ", ".join(origin),
        _metrics(registry, version),
    )


def _metrics(registry: Registry, version: ModelVersion) -> str:
    model_id = logged_model(version)
    if not model_id:
        return ""
    with refusals(f"show the model of version {version.version}", registry.store):
        found = {one.key: one.value for one in registry.client.get_logged_model(model_id).metrics or ()}
    values = {label: found.get(f"final/{name}", found.get(f"gate/{name}")) for label, name in HEADLINE.items()}
    return ", ".join(f"{label} {value:.1%}" for label, value in values.items() if value is not None)
