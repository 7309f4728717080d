"""What may not ship is found: pickles however named, fusion however named, foreign code, links, missing weights."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ito_ray.errors import ExportError
from ito_ray.export.checks import (
    check_folder,
    check_manifest,
    folder_manifest,
    manifest_digest,
    tower_prints,
    write_manifest,
)
from tests.export.tiny import FUSION, Exported, export

WEIGHTS = "text_0_Transformer/model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tmp_path_factory.mktemp("export"))


@pytest.fixture
def folder(made: Exported, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.folder, tmp_path / "copy"))


def check(folder: Path, made: Exported) -> dict[str, str]:
    return check_folder(folder, towers=made.reference.towers, forbidden=FUSION)


def test_clean_folder_passes_and_its_manifest_names_every_file(folder: Path, made: Exported) -> None:
    manifest = check(folder, made)
    assert set(manifest) == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert manifest == folder_manifest(folder)
    (folder / "README.md").write_text("changed")
    assert manifest_digest(folder_manifest(folder)) != manifest_digest(manifest)


def test_a_file_that_is_not_as_exported_is_refused(folder: Path, made: Exported) -> None:
    assert check_manifest(folder) == "sentence_transformer"
    readme = folder / "README.md"
    text = readme.read_text()
    readme.write_text(text + "!")
    with pytest.raises(ExportError, match=r"README\.md in .* is changed since the export"):
        check(folder, made)
    readme.unlink()
    (folder / "more.txt").write_text("more")
    with pytest.raises(ExportError, match=r"README\.md in .* is missing since the export.*, and so are 1 more"):
        check_manifest(folder)
    readme.write_text(text)
    with pytest.raises(ExportError, match=r"more\.txt in .* is new since the export"):
        check_manifest(folder)
    write_manifest(folder, "sentence_transformer")
    assert check_manifest(folder) == "sentence_transformer"
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(ExportError, match="has no manifest"):
        check_manifest(folder)


def _pickle_bin(folder: Path) -> None:
    torch.save({}, folder / "text_0_Transformer" / "pytorch_model.bin")


def _pickle_pkl(folder: Path) -> None:
    (folder / "extra.pkl").write_bytes(pickle.dumps({}))


def _pickle_under_text_suffix(folder: Path) -> None:
    (folder / "vocab.txt").write_bytes(pickle.dumps(list(range(300))))


def _old_pickle_under_json_suffix(folder: Path) -> None:
    (folder / "extra.json").write_bytes(pickle.dumps({"a": 1}, protocol=0))


def _pickle_under_safetensors_suffix(folder: Path) -> None:
    torch.save({}, folder / "extra.safetensors")


def _code(folder: Path) -> None:
    (folder / "custom.py").write_text("print('hello')")


def _foreign_class(folder: Path) -> None:
    path = folder / "router_config.json"
    path.write_text(path.read_text().replace("sentence_transformers.", "custom."))


def _auto_map(folder: Path) -> None:
    path = folder / "text_0_Transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModel": "custom.Model"}}))


def _link(folder: Path) -> None:
    (folder / "secret.txt").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        (_pickle_bin, "pytorch_model.bin"),
        (_pickle_pkl, "extra.pkl"),
        (_pickle_under_text_suffix, "vocab.txt"),
        (_old_pickle_under_json_suffix, "extra.json"),
        (_pickle_under_safetensors_suffix, "extra.safetensors"),
        (_code, "custom.py"),
        (_foreign_class, "custom."),
        (_auto_map, "auto_map.AutoModel"),
        (_link, "secret.txt"),
    ],
)
def test_planted_files_are_refused(folder: Path, made: Exported, plant: Callable[[Path], None], named: str) -> None:
    plant(folder)
    with pytest.raises(ExportError, match=named.replace(".", r"\.")):
        check(folder, made)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("fusion.blocks.0.weight", (24, 24), "belongs to the fusion module"),
        ("innocent", (16, 24), r"shape of the fusion module's fusion\.text_positions"),
        ("model.fusion.norm.weight", (24,), "belongs to the fusion module"),
        ("innocent", (5, 5, 5), "not one of the trained towers"),
    ],
)
def test_planted_tensors_are_refused(
    folder: Path, made: Exported, name: str, shape: tuple[int, ...], message: str
) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, name: torch.randn(shape)}, folder / WEIGHTS)
    with pytest.raises(ExportError, match=message):
        check(folder, made)


def test_a_foreign_tensor_of_a_towers_shape_is_refused(folder: Path, made: Exported) -> None:
    """Shapes alone would let this pass: a fusion matrix in the place of a tower's of the same shape."""
    tensors = load_file(folder / WEIGHTS)
    name, tensor = next((name, tensor) for name, tensor in tensors.items() if tensor.ndim == 2)
    save_file({**tensors, name: torch.randn_like(tensor)}, folder / WEIGHTS)
    with pytest.raises(ExportError, match="not one of the trained towers"):
        check(folder, made)


def test_a_towers_tensor_of_a_fusion_shape_is_no_false_alarm(folder: Path, made: Exported) -> None:
    same_shapes = {f"layer.{index}": tower.shape for index, tower in enumerate(made.reference.towers)}
    assert check_folder(folder, towers=made.reference.towers, forbidden=same_shapes)


def test_a_missing_tensor_is_refused(folder: Path, made: Exported) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ExportError, match="not in the folder, first text"):
        check(folder, made)


def test_prints_cover_the_towers_once_and_nothing_else() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = torch.nn.Linear(2, 2)
            self.text = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
            self.text.append(self.text[0])
            self.logit_scale = torch.nn.Parameter(torch.ones(()))

    names = [tensor.name for tensor in tower_prints(Model())]
    assert names == ["image.weight", "image.bias", "text.0.weight", "text.0.bias"]
