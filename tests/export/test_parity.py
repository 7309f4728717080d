"""The gate, with a real fresh process: equal embeddings pass, a changed weight or a needed ito_ray does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ito_ray.errors import ExportError
from ito_ray.export.parity import TOLERANCE, FreshProcess, Reference, parity, require_parity, take_reference, verify
from ito_ray.export.sentence_transformer import export_sentence_transformer
from tests.export.tiny import FUSION, Exported, export

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tmp_path_factory.mktemp("export"))


def test_verified(made: Exported, tmp_path: Path) -> None:
    made.reference.save(tmp_path / "reference.safetensors")
    with FreshProcess() as started_early:
        verified = verify(made.folder, Reference.load(tmp_path / "reference.safetensors"), started_early)
    assert verified.max_abs_difference <= 1e-6
    assert verified.folder == made.folder


def test_a_weight_changed_after_the_reference_breaks_parity(made: Exported, tmp_path: Path) -> None:
    weight = made.model.image.proj.weight
    original = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] += 0.01
    folder = export_sentence_transformer(made.model, made.folder.parent / "tokenizer", tmp_path / "changed")
    with torch.no_grad():
        weight.copy_(original)
    with pytest.raises(ExportError, match=rf"largest difference is .*, allowed is {TOLERANCE:g}"):
        require_parity(folder, made.reference)
    with pytest.raises(ExportError, match="not one of the trained towers"):  # and the contents tell before that
        verify(folder, made.reference)


def test_a_folder_that_needs_ito_ray_is_refused(made: Exported, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "copy"))
    config = folder / "router_config.json"
    content = json.loads(config.read_text())
    content["types"]["image_2_Normalize"] = "ito_ray.models.dual_encoder.DualEncoder"
    config.write_text(json.dumps(content))
    with pytest.raises(ExportError, match="cannot be loaded by sentence-transformers alone"):
        parity(folder, made.reference)


def test_an_unused_process_is_ended() -> None:
    with FreshProcess() as unused:
        pass
    assert unused._process.returncode is not None


def test_reference_survives_its_file(made: Exported, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "reference.safetensors"
    made.reference.save(path)
    loaded = Reference.load(path)
    assert loaded.texts == made.reference.texts
    assert loaded.towers == made.reference.towers
    assert loaded.forbidden == FUSION
    np.testing.assert_array_equal(loaded.image_ND, made.reference.image_ND)
    assert all(np.array_equal(a, b) for a, b in zip(loaded.images, made.reference.images, strict=True))


def test_what_is_no_reference_is_refused(made: Exported, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not a reference"):
        Reference.load(tmp_path / "missing.safetensors")
    with pytest.raises(ExportError, match="is not a reference"):
        Reference.load(made.folder / "text_0_Transformer" / "model.safetensors")


def test_images_of_any_mode_are_taken_as_rgb(made: Exported) -> None:
    from PIL import Image

    reference = take_reference(
        made.model, made.encoder, forbidden={}, texts=["a"], images=[Image.new("L", (9, 7), 100)]
    )
    assert reference.images[0].shape == (7, 9, 3)
