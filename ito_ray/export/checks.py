"""What an exported folder may hold: plain text, safetensors of the two towers, and nothing else.

The proof that fusion stays home is by content: the tensors in the folder must be, as a multiset of (shape, bytes), the
tensors of the trained towers. A shape that fusion and a tower share is therefore no false alarm, and a fusion tensor
under an innocent name is found.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ito_ray.errors import ExportError

MANIFEST = "manifest.json"
"""What kind of folder it is, and the sha256 of every other file: whoever got it can see that it is whole."""
TEXT_SUFFIXES = frozenset({".json", ".txt", ".md", ".jinja"})
TENSOR_SUFFIX = ".safetensors"
FUSION_SEGMENT = "fusion"
STOCK_CLASSES = ("sentence_transformers.", "torch.nn.")
TOWERS = ("image.", "text.")


@dataclass(frozen=True)
class TensorPrint:
    """Name, shape and sha256 (of the float32 bytes, for floating tensors) of one tensor."""

    name: str
    shape: tuple[int, ...]
    digest: str

    @property
    def content(self) -> tuple[tuple[int, ...], str]:
        return self.shape, self.digest


def tensor_print(name: str, tensor: torch.Tensor) -> TensorPrint:
    """Fingerprint of `tensor`; the floating types are compared as float32, which is what ships."""
    plain = tensor.detach().cpu().contiguous()
    if plain.is_floating_point():
        plain = plain.float()
    data = plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else np.empty(0, np.uint8)
    return TensorPrint(name, tuple(plain.shape), hashlib.sha256(data.data).hexdigest())


def tower_prints(model: torch.nn.Module) -> tuple[TensorPrint, ...]:
    """Fingerprints of the tensors below `model.image` and `model.text`, a shared tensor counted once.

    logit_scale and anything else beside the towers is left out: it does not ship as a tensor.
    """
    prints: list[TensorPrint] = []
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if not name.startswith(TOWERS) or (tensor.numel() and place in seen):
            continue
        seen.add(place)
        prints.append(tensor_print(name, tensor))
    return tuple(prints)


def check_folder(
    folder: Path,
    *,
    towers: Sequence[TensorPrint],
    forbidden: Mapping[str, tuple[int, ...]],
) -> dict[str, str]:
    """Look at every file of an exported folder; return its manifest {relative path: sha256}.

    Args:
        folder: the exported SentenceTransformer.
        towers: fingerprints of the trained towers (`tower_prints`).
        forbidden: names and shapes of the fusion module's parameters; they only make the refusal more precise.

    Raises:
        ExportError: symlink; a file that is neither text nor safetensors (pickles have no allowed suffix, and an
            allowed suffix does not hide one); a class or code outside the stock libraries; a tensor that is named
            like fusion, is not a tower's, or is missing; a file that is not as the folder's manifest.json has it.
    """
    if not (folder / "modules.json").is_file():
        raise ExportError(f"{folder} has no modules.json: give the folder of an exported SentenceTransformer.")
    manifest: dict[str, str] = {}
    shipped: list[TensorPrint] = []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix == TENSOR_SUFFIX:
            shipped += _read_prints(path, name)
        elif path.suffix in TEXT_SUFFIXES:
            _check_text(path, name)
        else:
            raise ExportError(
                f"{name} in {folder} is not allowed to ship: only {_allowed()} files may, since others can hold "
                "pickled code. Remove it."
            )
        with path.open("rb") as file:
            manifest[name] = hashlib.file_digest(file, "sha256").hexdigest()
    _check_tensors(shipped, towers, forbidden)
    check_manifest(folder)
    return manifest


def manifest_digest(manifest: Mapping[str, str]) -> str:
    """One sha256 for the whole folder: of its sorted manifest."""
    return hashlib.sha256(json.dumps(dict(manifest), sort_keys=True).encode()).hexdigest()


def folder_manifest(folder: Path) -> dict[str, str]:
    """{relative path: sha256} of all files, without judging them; ExportError for a symlink."""
    manifest = {}
    for path in _files(folder):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        manifest[path.relative_to(folder).as_posix()] = digest
    return manifest


def write_manifest(folder: Path, kind: str) -> dict[str, str]:
    """Write manifest.json for all other files as they are now; returns {relative path: sha256}."""
    files = {name: digest for name, digest in folder_manifest(folder).items() if name != MANIFEST}
    content = json.dumps({"format": 1, "kind": kind, "sha256": files}, indent=2, ensure_ascii=False)
    path = folder / MANIFEST
    path.write_text(f"{content}\n", encoding="utf-8")
    path.chmod(0o644)
    return files


def read_manifest(folder: Path) -> tuple[str, dict[str, str]]:
    """Kind and {relative path: sha256} as manifest.json has them.

    Raises:
        ExportError: there is none, or it is something else.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text("utf-8"))
        return str(content["kind"]), dict(content["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{folder} has no {MANIFEST} that can be read ({type(error).__name__}), so its files cannot be checked: "
            "export again."
        ) from error


def check_manifest(folder: Path) -> str:
    """Compare all files with manifest.json; returns the kind of folder.

    Raises:
        ExportError: no manifest, or a file that was changed, added or removed since the export.
    """
    kind, expected = read_manifest(folder)
    found = {name: digest for name, digest in folder_manifest(folder).items() if name != MANIFEST}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        what = "missing" if wrong[0] not in found else "changed" if wrong[0] in expected else "new"
        raise ExportError(
            f"{wrong[0]} in {folder} is {what} since the export, by the sha256 in {MANIFEST}"
            f"{f', and so are {len(wrong) - 1} more' if wrong[1:] else ''}: copy or export the folder again."
        )
    return kind


def _allowed() -> str:
    return ", ".join(sorted(TEXT_SUFFIXES | {TENSOR_SUFFIX}))


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ExportError(
                f"{path.relative_to(folder)} in {folder} is a symlink: copy the file itself, a link would ship "
                "whatever it points to."
            )
        if path.is_file():
            yield path


def _check_text(path: Path, name: str) -> None:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else None
    except ValueError as error:
        raise ExportError(
            f"{name} is not readable as {path.suffix[1:]} text ({error}): a file under a text suffix that is none "
            "may hold pickled code. Remove it."
        ) from error
    if "\0" in text:
        raise ExportError(f"{name} holds zero bytes, so it is no text file: remove it.")
    for class_name in _classes(name.rsplit("/", 1)[-1], content):
        if not class_name.startswith(STOCK_CLASSES):
            raise ExportError(
                f"{name} names the class {class_name!r}, but only stock classes may ship "
                f"({', '.join(prefix + '*' for prefix in STOCK_CLASSES)}): others need trust_remote_code."
            )


def _classes(file_name: str, content: object) -> Iterator[str]:
    """Classes that loading would import by name."""
    if file_name == "modules.json" and isinstance(content, list):
        yield from (str(module["type"]) for module in content)
    if not isinstance(content, dict):
        return
    if file_name == "router_config.json":
        yield from map(str, content.get("types", {}).values())
    if "activation_function" in content:
        yield str(content["activation_function"])
    for auto_class in content.get("auto_map", {}):
        yield f"auto_map.{auto_class}"


def _read_prints(path: Path, name: str) -> list[TensorPrint]:
    try:
        return [tensor_print(f"{name}:{key}", tensor) for key, tensor in load_file(path).items()]
    except SafetensorError as error:
        raise ExportError(f"{name} is not a safetensors file ({error}): export again.") from error


def _check_tensors(
    shipped: Sequence[TensorPrint],
    towers: Sequence[TensorPrint],
    forbidden: Mapping[str, tuple[int, ...]],
) -> None:
    left = Counter(tensor.content for tensor in towers)
    for tensor in shipped:
        segments = tensor.name.rsplit(":", 1)[-1].split(".")
        if FUSION_SEGMENT in segments:
            raise ExportError(
                f"The tensor {tensor.name} belongs to the fusion module, which exists in training only: export the "
                "dual encoder alone."
            )
        if not left[tensor.content]:
            raise ExportError(
                f"The tensor {tensor.name} {list(tensor.shape)} is not one of the trained towers' tensors"
                f"{_fusion_hint(tensor, forbidden)}: export the dual encoder again, with nothing beside it."
            )
        left[tensor.content] -= 1
    missing = {content for content, count in left.items() if count}
    if missing:
        names = [tensor.name for tensor in towers if tensor.content in missing]
        raise ExportError(
            f"{len(missing)} tensors of the trained towers are not in the folder, first {names[0]}: export again."
        )


def _fusion_hint(tensor: TensorPrint, forbidden: Mapping[str, tuple[int, ...]]) -> str:
    key = tensor.name.rsplit(":", 1)[-1]
    by_name = [name for name in forbidden if key == name or key.endswith(f".{name}")]
    by_shape = [name for name, shape in forbidden.items() if tuple(shape) == tensor.shape]
    if by_name:
        return f" and has the name of the fusion module's {by_name[0]}"
    if by_shape:
        return f" and has the shape of the fusion module's {by_shape[0]}"
    return ""
