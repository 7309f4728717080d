"""The text graph of an ONNX folder once more with 8-bit weights, and what that costs in likeness and retrieval.

onnxruntime's dynamic quantisation: weights of the matrix products and the token table as int8 with one scale a tensor,
activations scaled anew in every call. https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ito_ray.errors import ExportError
from ito_ray.export.onnx_encoder import OnnxEncoder
from ito_ray.export.sentence_transformer import write_json

FILE = "text_int8.onnx"
SUBJECTS = ("cat", "dog", "red car", "house by the sea", "bowl of fruit", "old man reading", "bridge at night", "tree")
FRAMES = ("a photo of a {}", "{}", "a drawing of a {}, black and white", "two {}s, seen from above, with a lot of sky")
SAMPLE = tuple(frame.format(subject) for frame in FRAMES for subject in SUBJECTS)
"""What is compared when there are no captions."""


@dataclass(frozen=True)
class Int8Loss:
    """Measured on the very files of the folder."""

    texts: int
    source: str
    """Where the texts are from."""
    cosine_mean: float
    cosine_min: float
    float_bytes: int
    int8_bytes: int
    recall: dict[str, dict[str, float]] | None
    """{"float" | "int8": {"image_to_text_r1", "text_to_image_r1"}} over the given pairs."""

    def __str__(self) -> str:
        """One line for people."""
        size = f"{self.float_bytes / 1e6:.1f} → {self.int8_bytes / 1e6:.1f} MB"
        line = (
            f"int8 text tower: {size}, cosine to float {self.cosine_mean:.5f} on average and {self.cosine_min:.5f} at "
            f"least, over {self.texts} {self.source}"
        )
        if self.recall:
            moves = (
                f"{name.replace('_', ' ').replace(' r1', ' R@1')} {self.recall['float'][name]:.1%} → {value:.1%}"
                for name, value in self.recall["int8"].items()
            )
            line += f"; {', '.join(moves)}"
        return line


def add_int8_text(folder: Path, pairs: Sequence[tuple[Image.Image, str]] = (), source: str = "") -> Int8Loss:
    """Write text_int8.onnx into an ONNX folder, measure it, and note both in its preprocess.json.

    Args:
        folder: as `write_onnx` makes it.
        pairs: images with a caption each: the captions are compared, and R@1 is measured among the pairs.
        source: where they are from, for the record; without pairs, sentences that are built in are compared.

    Raises:
        ExportError: onnxruntime cannot quantise this tower.
    """
    _quantise(folder / "text.onnx", folder / FILE)
    described = json.loads((folder / "preprocess.json").read_text("utf-8"))
    described["text"]["int8_file"] = FILE
    write_json(folder / "preprocess.json", described)
    texts = [caption for _, caption in pairs] or list(SAMPLE)
    both = {"float": OnnxEncoder(folder), "int8": OnnxEncoder(folder, int8_text=True)}
    text_ND = {name: _in_batches(encoder, texts) for name, encoder in both.items()}
    cosine_N = (text_ND["float"] * text_ND["int8"]).sum(1)
    recall = None
    if pairs:
        image_ND = np.concatenate([both["float"].encode_images([image]) for image, _ in pairs])
        recall = {name: _recall(image_ND, one_ND) for name, one_ND in text_ND.items()}
    loss = Int8Loss(
        texts=len(texts),
        source=source if pairs else "built-in sentences",
        cosine_mean=float(cosine_N.mean()),
        cosine_min=float(cosine_N.min()),
        float_bytes=(folder / "text.onnx").stat().st_size,
        int8_bytes=(folder / FILE).stat().st_size,
        recall=recall,
    )
    described["text"]["int8_measured"] = asdict(loss)
    write_json(folder / "preprocess.json", described)
    return loss


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
                prepared, target, op_types_to_quantize=["MatMul", "Gemm", "Gather"], weight_type=QuantType.QInt8
            )
    except Exception as error:
        raise ExportError(
            f"onnxruntime cannot write the text tower with int8 weights ({type(error).__name__}: {error}): export "
            "without --int8-text."
        ) from error
    finally:
        logging.disable(level)


def _in_batches(encoder: OnnxEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
    parts = [encoder.encode_texts(texts[start : start + 32]) for start in range(0, len(texts), 32)]
    whole: NDArray[np.float32] = np.concatenate(parts)
    return whole


def _recall(image_ND: NDArray[np.float32], text_ND: NDArray[np.float32]) -> dict[str, float]:
    similarity_NN = image_ND @ text_ND.T
    own_N = np.arange(len(image_ND))
    return {
        "image_to_text_r1": float((similarity_NN.argmax(1) == own_N).mean()),
        "text_to_image_r1": float((similarity_NN.argmax(0) == own_N).mean()),
    }
