"""Does the exported folder encode like the trained model? Measured in a process that cannot import ito_ray.

The order: `take_reference` from the trained model, `export_sentence_transformer`, then `verify` the folder against the
reference. `verify` returns the `Verified` that the registry asks for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from ito_ray.errors import ExportError
from ito_ray.export.checks import TensorPrint, check_folder, manifest_digest, tower_prints

TOLERANCE = 1e-5
CHILD_SECONDS = 900
Kind = Literal["sentence_transformer", "open_clip", "hf_clip", "onnx"]
LIBRARIES: Mapping[Kind, str] = {
    "sentence_transformer": "sentence-transformers",
    "open_clip": "OpenCLIP",
    "hf_clip": "transformers",
    "onnx": "onnxruntime, tokenizers, Pillow and numpy",
}
REMEDIES: Mapping[Kind, str] = {
    "sentence_transformer": "Export the model again with towers of stock classes.",
    "open_clip": 'OpenCLIP must know local-dir: folders: pip install -U "ito_ray[clip]".',
    "hf_clip": "Is a newer transformers needed? pip install -U transformers.",
    "onnx": 'Is a newer runtime needed? pip install -U "ito_ray[onnx]".',
}
PROBE_TEXTS = (
    "a photo of a red bird",
    "<|endoftext|> [SEP] </s> zwölf grüne Boote – im Hafen, 日本 🙂",
    "https://example.org/cat.jpg",
    "word " * 300,
    "",
)
PROBE_SIZES = ((64, 64), (97, 41), (33, 260), (301, 300), (5, 7))


class Encoder(Protocol):
    """What a reference is taken from, e.g. `ito_ray.evaluation.TowerEncoder` in float32."""

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """RGB images -> (n,D) float32, L2-normalised."""

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> (n,D) float32, L2-normalised."""


@dataclass(frozen=True, eq=False)
class Reference:
    """All that is remembered of the trained model: what it encoded to what, and its tensors' fingerprints."""

    texts: tuple[str, ...]
    images: tuple[NDArray[np.uint8], ...]
    """RGB, (H,W,3) each."""
    text_ND: NDArray[np.float32]
    image_ND: NDArray[np.float32]
    towers: tuple[TensorPrint, ...]
    forbidden: Mapping[str, tuple[int, ...]]
    """Names and shapes of the fusion module's parameters."""

    def save(self, path: Path) -> None:
        """Write as one safetensors file; it stays beside the exported folder and does not ship."""
        inputs = {f"input.{index:04d}": image for index, image in enumerate(self.images)}
        metadata = {
            "texts": json.dumps(self.texts),
            "towers": json.dumps([[one.name, one.shape, one.digest] for one in self.towers]),
            "forbidden": json.dumps(dict(self.forbidden)),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"text": self.text_ND, "image": self.image_ND, **inputs}, path, metadata)

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote; ExportError when the file is missing or something else."""
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
            arrays = load_file(path)
            return cls(
                texts=tuple(json.loads(metadata["texts"])),
                images=tuple(arrays[key] for key in sorted(arrays) if key.startswith("input.")),
                text_ND=arrays["text"],
                image_ND=arrays["image"],
                towers=tuple(TensorPrint(a, tuple(b), c) for a, b, c in json.loads(metadata["towers"])),
                forbidden={name: tuple(shape) for name, shape in json.loads(metadata["forbidden"]).items()},
            )
        except (OSError, KeyError, SafetensorError) as error:
            raise ExportError(
                f"{path} is not a reference of a trained model ({error}): give the *.reference.safetensors that "
                "training wrote beside the exported folder, or export again."
            ) from error


@dataclass(frozen=True)
class Verified:
    """A folder that passed: only such a one is registered."""

    folder: Path
    digest: str
    """sha256 over the manifest of all files, at the time of the check."""
    max_abs_difference: float
    """Largest difference of an embedding's coordinate to the trained model."""


def reference_path(folder: Path) -> Path:
    """Where the reference of an exported folder lies: beside it, since it must not ship."""
    return folder.with_name(f"{folder.name}.reference.safetensors")


def probe_images(seed: int = 0, sizes: Sequence[tuple[int, int]] = PROBE_SIZES) -> list[Image.Image]:
    """RGB images of awkward sizes (width, height): odd, narrow, wide, smaller than any patch."""
    rng = np.random.default_rng(seed)
    shapes = ((height, width, 3) for width, height in sizes)
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def take_reference(
    model: torch.nn.Module,
    encoder: Encoder,
    *,
    forbidden: Mapping[str, tuple[int, ...]],
    texts: Sequence[str] = PROBE_TEXTS,
    images: Sequence[Image.Image] = (),
) -> Reference:
    """Remember the trained dual encoder.

    Args:
        model: the DualEncoder, whose `image` and `text` are fingerprinted.
        encoder: encodes with this model in float32; the one that evaluation uses.
        forbidden: {name: shape} of the fusion module's parameters; empty when there is none.
        texts, images: what to compare on; the default includes overlong, empty and URL-like texts and awkward sizes.
    """
    pictures = [image.convert("RGB") for image in (images or probe_images())]
    return Reference(
        texts=tuple(texts),
        images=tuple(np.asarray(image) for image in pictures),
        text_ND=np.ascontiguousarray(encoder.encode_texts(list(texts)), dtype=np.float32),
        image_ND=np.ascontiguousarray(encoder.encode_images(pictures), dtype=np.float32),
        towers=tower_prints(model),
        forbidden=dict(forbidden),
    )


class FreshProcess:
    """A Python process that cannot import ito_ray, importing what it needs while the caller does other work.

    A context manager; start it before the export to hide the seconds that its imports take. Good for one `encode`.

    Args:
        kind: what the folder is. For onnx neither torch nor anything built on it can be imported.
    """

    def __init__(self, kind: Kind = "sentence_transformer") -> None:
        self._kind = kind
        self._scratch = tempfile.TemporaryDirectory(prefix="ito-parity-")
        self._log = Path(self._scratch.name, "stderr.txt")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("parity_child.py")), kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                text=True,
                env={**environment, "CUDA_VISIBLE_DEVICES": ""},
                cwd=self._scratch.name,
            )

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._scratch.cleanup()

    def encode(self, folder: Path, reference: Reference) -> dict[str, NDArray[np.float32]]:
        """The reference's inputs encoded with `folder`: `text` (n,D) and `image` (m,D).

        Where the child makes the batches, also in other ones: `text.1`, `text.2`, …

        Raises:
            ExportError: the folder cannot be loaded without ito_ray, without network or without unpickling.
        """
        inputs, out = Path(self._scratch.name, "in.safetensors"), Path(self._scratch.name, "out.safetensors")
        reference.save(inputs)
        request = json.dumps([str(folder.resolve()), str(inputs), str(out)])
        try:
            self._process.communicate(f"{request}\n", timeout=CHILD_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ExportError(
                f"{folder} was not encoded within {CHILD_SECONDS} s by a fresh process: is the machine overloaded? "
                "Try again when it is not."
            ) from error
        if self._process.returncode:
            lines = self._log.read_text("utf-8", "replace").strip().splitlines()
            reason = lines[-1] if lines else f"exit code {self._process.returncode}"
            raise ExportError(
                f"{folder} cannot be loaded by {LIBRARIES[self._kind]} alone: {reason}. {REMEDIES[self._kind]}"
            )
        return load_file(out)


def parity(folder: Path, reference: Reference, process: FreshProcess | None = None) -> float:
    """Largest |difference| of any embedding coordinate between the folder, freshly loaded, and the reference.

    Args:
        folder: the exported SentenceTransformer, or what `process` was started for.
        reference: of the trained model.
        process: one that was started before; else a new one is.

    Raises:
        ExportError: as `FreshProcess.encode`; or the embeddings have another shape, or hold NaN.
    """
    with process or FreshProcess() as fresh:
        encoded = fresh.encode(folder, reference)
    differences = []
    for name, embedding_ND in encoded.items():
        expected_ND = reference.text_ND if name.startswith("text") else reference.image_ND
        if embedding_ND.shape != expected_ND.shape:
            raise ExportError(
                f"{folder} encodes {name} to {embedding_ND.shape}, the trained model to {expected_ND.shape}: it is "
                "another model's folder or reference."
            )
        differences.append(np.abs(embedding_ND - expected_ND).max(initial=0.0))
    largest = float(np.max(differences))
    if not np.isfinite(largest):
        raise ExportError(f"{folder} encodes to NaN or infinity: the trained weights are broken.")
    return largest


def require_parity(
    folder: Path, reference: Reference, process: FreshProcess | None = None, *, tolerance: float = TOLERANCE
) -> float:
    """`parity`, refused with ExportError above `tolerance`."""
    difference = parity(folder, reference, process)
    if difference > tolerance:
        raise ExportError(
            f"{folder} encodes differently from the trained model: the largest difference is {difference:.3g}, "
            f"allowed is {tolerance:g}. Export again from the checkpoint that the reference was taken of, in float32."
        )
    return difference


def verify(
    folder: Path, reference: Reference, process: FreshProcess | None = None, *, tolerance: float = TOLERANCE
) -> Verified:
    """The gate before registration: contents, then parity.

    Raises:
        ExportError: from `check_folder` or `require_parity`.
    """
    manifest = check_folder(folder, towers=reference.towers, forbidden=reference.forbidden)
    difference = require_parity(folder, reference, process, tolerance=tolerance)
    return Verified(folder, manifest_digest(manifest), difference)
