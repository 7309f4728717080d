"""Graphs of an ONNX folder once more with 8-bit weights, and what that costs in likeness and retrieval.

onnxruntime's dynamic quantisation: weights of the matrix products, and the token table, as int8 with a scale a channel;
activations scaled anew in every call. https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html

Weights have 7 of the 8 bits. A processor without VNNI adds two products of an unsigned activation (up to 255) and a
weight in 16 bits that saturate at 32,767: 2 · 255 · 127 does not fit, 2 · 255 · 64 does. So a folder written on one
processor is right on every other.
"""

from __future__ import annotations

import json
import logging
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ito_ray.data.captions import caption_numbers
from ito_ray.errors import ExportError
from ito_ray.export.card import MARK, README
from ito_ray.export.onnx_encoder import OnnxEncoder
from ito_ray.export.sentence_transformer import write_json

Tower = Literal["text", "image"]
SUBJECTS = ("cat", "dog", "red car", "house by the sea", "bowl of fruit", "old man reading", "bridge at night", "tree")
FRAMES = ("a photo of a {}", "{}", "a drawing of a {}, black and white", "two {}s, seen from above, with a lot of sky")
SAMPLE = tuple(frame.format(subject) for frame in FRAMES for subject in SUBJECTS)
"""What is compared when there are no captions."""
CARD = """
## 8-bit towers

`OnnxEncoder(folder, int8_text=True, int8_image=True)` takes those that are there. Weights are integers from -64 to 64,
so that no sum overflows on a processor without 8-bit instructions (VNNI): embeddings are alike on all. Measured on
{machine}:

{lines}
"""


@dataclass(frozen=True)
class TowerLoss:
    """Of one tower's embeddings and file."""

    inputs: int
    cosine_mean: float
    cosine_min: float
    float_bytes: int
    int8_bytes: int


@dataclass(frozen=True)
class Int8Loss:
    """Measured on the very files of the folder."""

    source: str
    """Where the texts and images are from."""
    towers: dict[str, TowerLoss]
    recall: dict[str, dict[str, float]] | None
    """{"float" | "int8": {"image_to_text_r1", "text_to_image_r1"}} over the given pairs, all int8 towers in use."""
    machine: str
    """The processor that it was measured on."""

    def __str__(self) -> str:
        """A line for each tower and one for retrieval, for people."""
        lines = [
            f"int8 {name} tower: {one.float_bytes / 1e6:.1f} → {one.int8_bytes / 1e6:.1f} MB, cosine to float "
            f"{one.cosine_mean:.5f} on average and {one.cosine_min:.5f} at least, over {one.inputs} of {self.source}"
            for name, one in self.towers.items()
        ]
        if self.recall:
            moves = (
                f"{name.replace('_', ' ').replace(' r1', ' R@1')} {self.recall['float'][name]:.1%} → {value:.1%}"
                for name, value in self.recall["int8"].items()
            )
            lines.append(f"int8 retrieval: {', '.join(moves)}")
        return "\n".join(lines)


def add_int8(
    folder: Path, towers: Sequence[Tower], pairs: Sequence[tuple[Image.Image, str]] = (), source: str = ""
) -> Int8Loss:
    """Write text_int8.onnx and image_int8.onnx into an ONNX folder, measure them, note both in its preprocess.json.

    Args:
        folder: as `write_onnx` makes it.
        towers: which.
        pairs: images with a caption each: both are compared, and R@1 is measured among the pairs. Without, the text
            tower is compared on sentences that are built in; the image tower needs pairs.
        source: where they are from, for the record.

    Raises:
        ExportError: a tower that cannot be quantised, or gets no smaller.
    """
    assert pairs or "image" not in towers
    described: dict[str, Any] = json.loads((folder / "preprocess.json").read_text("utf-8"))
    for tower in towers:
        described[tower]["int8_file"] = f"{tower}_int8.onnx"
        _quantise(folder / described[tower]["file"], folder / described[tower]["int8_file"])
    write_json(folder / "preprocess.json", described)
    whole = OnnxEncoder(folder)
    small = OnnxEncoder(folder, int8_text="text" in towers, int8_image="image" in towers)
    texts = [caption for _, caption in pairs] or list(SAMPLE)
    images = [image for image, _ in pairs]
    embedded = {
        name: {"text": _in_batches(encoder.encode_texts, texts), "image": _in_batches(encoder.encode_images, images)}
        for name, encoder in (("float", whole), ("int8", small))
    }
    loss = Int8Loss(
        source=source if pairs else "the built-in sentences",
        towers={tower: _loss(folder, described[tower], *(one[tower] for one in embedded.values())) for tower in towers},
        recall={name: _recall(one["image"], one["text"], texts) for name, one in embedded.items()} if pairs else None,
        machine=_processor(),
    )
    write_json(folder / "preprocess.json", {**described, "int8_measured": asdict(loss)})
    usage, mark, origin = (folder / README).read_text("utf-8").partition(MARK)
    lines = "\n".join(f"- {line}" for line in str(loss).splitlines())
    section = CARD.format(machine=loss.machine, lines=lines)
    (folder / README).write_text(f"{usage}{section}{mark}{origin}", encoding="utf-8")
    return loss


def _processor() -> str:
    """Its name, and whether it has the instructions that 8-bit products are made for; the latter on Linux only."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.machine()
    flags = facts.get("flags")
    return name if flags is None else f"{name} {'with' if 'vnni' in flags else 'without'} VNNI"


def _quantise(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises to do what is done here
    try:
        with tempfile.TemporaryDirectory(prefix="ito-int8-") as scratch:
            bare, prepared = Path(scratch, "bare.onnx"), Path(scratch, "prepared.onnx")
            graph = onnx.load(str(source))
            del graph.graph.value_info[:]  # noted shapes of weights, which the quantiser transposes: it would object
            onnx.save(graph, str(bare))
            quant_pre_process(bare, prepared, skip_symbolic_shape=True)
            quantize_dynamic(
                prepared,
                target,
                op_types_to_quantize=["MatMul", "Gemm", "Gather"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                reduce_range=True,  # 7 bits: see the top of this file
            )
    except Exception as error:
        raise ExportError(
            f"onnxruntime cannot write {source.name} with int8 weights ({type(error).__name__}: {error}): export "
            f"without --int8-{source.stem}."
        ) from error
    finally:
        logging.disable(level)
    if target.stat().st_size > 0.9 * source.stat().st_size:
        raise ExportError(
            f"{source.name} does not get smaller with int8 weights: it is made of convolutions, which stay as they "
            f"are. Export without --int8-{source.stem}."
        )


def _loss(folder: Path, described: dict[str, Any], whole_ND: NDArray[np.float32], small_ND: Any) -> TowerLoss:
    cosine_N = (whole_ND * small_ND).sum(1)
    return TowerLoss(
        inputs=len(cosine_N),
        cosine_mean=float(cosine_N.mean()),
        cosine_min=float(cosine_N.min()),
        float_bytes=(folder / described["file"]).stat().st_size,
        int8_bytes=(folder / described["int8_file"]).stat().st_size,
    )


def _in_batches(encode: Any, inputs: Sequence[Any]) -> NDArray[np.float32]:
    parts = [encode(inputs[start : start + 32]) for start in range(0, len(inputs), 32)]
    whole: NDArray[np.float32] = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
    return whole


def _recall(image_ND: NDArray[np.float32], text_ND: NDArray[np.float32], texts: Sequence[str]) -> dict[str, float]:
    similarity_NN = image_ND @ text_ND.T
    number_N = caption_numbers(texts)  # equal captions are equal answers, as in evaluation
    return {
        "image_to_text_r1": float((number_N[similarity_NN.argmax(1)] == number_N).mean()),
        "text_to_image_r1": float((number_N[similarity_NN.argmax(0)] == number_N).mean()),
    }
