"""The card says what a run recorded, calls the rest unknown, and travels to other formats without anyone's paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ito_ray.config.load import overlay
from ito_ray.config.recipes import icons_cpu
from ito_ray.errors import ExportError
from ito_ray.export.card import Origin, public_name, read_origin, render, training_facts, with_origin, write_origin
from ito_ray.export.checks import check_manifest, folder_manifest, manifest_digest
from ito_ray.export.parity import Verified
from tests.export.tiny import export

KNOWN = Origin(
    data="cc12m/{00000..01242}.tar",
    recipe="cc12m",
    training={"steps": "100 of 8 pairs"},
    metrics={"r1|x": 0.25, "count": 500.0},
    intervals={"r1|x": (0.2, 0.3)},
    evaluated_on="coco/val",
    seconds=5400.0,
)


def test_nothing_is_invented() -> None:
    lines = render(Origin()).splitlines()
    facts = [line for line in lines if line.startswith("| ") and line != "| | |"]
    assert facts and all(line.endswith("| unknown |") for line in facts)
    assert "Results: unknown." in lines
    assert [line for line in lines if line.startswith("#")] == [
        f"## {title}" for title in ("Data", "Training", "Results", "Limits", "Compute")
    ]


def test_what_is_known_is_said() -> None:
    text = render(KNOWN)
    for line in (
        "| set | cc12m/{00000..01242}.tar |",
        "| licence | unknown |",
        "| steps | 100 of 8 pairs |",
        "| time | 1.50 h |",
        "| carbon | unknown |",
        "| r1\\|x | 0.25 | 0.2 – 0.3 |",
        "| count | 500 |  |",
        "Measured on: coco/val.",
    ):
        assert line in text.splitlines()


def test_the_card_is_replaced_and_the_folder_stays_verified(tmp_path: Path) -> None:
    folder = export(tmp_path).folder
    usage = (folder / "README.md").read_text()
    verified = Verified(folder, manifest_digest(folder_manifest(folder)), 1e-7)
    first = with_origin(verified, Origin())
    second = with_origin(first, KNOWN)
    text = (folder / "README.md").read_text()
    assert text.startswith(usage) and text.count("## Data") == 1 and text.count("## Compute") == 1
    assert read_origin(folder) == KNOWN
    check_manifest(folder)
    assert second.digest == manifest_digest(folder_manifest(folder)) != first.digest
    assert second.max_abs_difference == verified.max_abs_difference
    (folder / "README.md").write_text("changed")
    with pytest.raises(ExportError, match="has changed since it was verified"):
        with_origin(second, KNOWN)


def test_a_foreign_model_card_is_refused(tmp_path: Path) -> None:
    assert read_origin(tmp_path) == Origin()
    for content in ("[]", "{", json.dumps({"format": 1, "intervals": {}, "owner": "me"})):
        (tmp_path / "model_card.json").write_text(content)
        with pytest.raises(ExportError, match=r"model_card\.json is not a model card"):
            read_origin(tmp_path)


def test_the_settings_of_a_recipe() -> None:
    facts = training_facts(icons_cpu(), 310)
    assert (
        facts["method"] == "ito, fusion weight 2, 50 % of captions hidden from the fusion, 2 views, 1 captions a sample"
    )
    assert facts["steps"] == "310 of 128 pairs"
    clip = overlay(icons_cpu(), {"method": {"name": "clip"}, "data": {"views": {"count": 1}}}, source="test")
    assert training_facts(clip, 310)["method"] == "clip, 1 views, 1 captions a sample"
    ours = {"fusion_schedule": "falling", "fusion": {"caption_drop": 0.25, "temperature": "own"}}
    changed = overlay(icons_cpu(), {"method": ours, "optim": {"name": "lion"}}, source="test")
    facts = training_facts(changed, 310)
    assert "2 (falling), 25 % of captions hidden from the fusion, a fusion temperature of its own" in facts["method"]
    assert facts["optimiser"].startswith("lion, ")


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("demo/data/train", "data/train"),
        ("/home/me/private/coco/val", "coco/val"),
        ("s3://bucket/cc12m/{00000..01242}.tar", "cc12m/{00000..01242}.tar"),
        ("https://user:secret@host/data.tar?token=abc", "data.tar"),  # pragma: allowlist secret
        ("pairs.tar", "pairs.tar"),
    ],
)
def test_addresses_leave_without_what_is_private(pattern: str, name: str) -> None:
    assert public_name(pattern) == name


def test_an_origin_needs_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("usage\n")
    write_origin(tmp_path, KNOWN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "model_card.json"]
