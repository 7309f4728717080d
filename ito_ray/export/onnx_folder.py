"""Both encoders as ONNX files: no torch at inference, batch and text length free, embeddings of unit length.

folder/
  image.onnx         pixels float32 (batch, 3, size, size), normalised   -> embeddings float32 (batch, D)
  text.onnx          input_ids, attention_mask int64 (batch, tokens)     -> embeddings float32 (batch, D)
  tokenizer.json     for the `tokenizers` library
  preprocess.json    how an image becomes pixels, and a text ids
  README.md          both of them as code

Shapes: B inputs, C channels, H×W pixels, T tokens, D shared width.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.export import Dim

from ito_ray.errors import ExportError
from ito_ray.export.sentence_transformer import quiet, write_json
from ito_ray.export.standalone import standalone
from ito_ray.models.dual_encoder import DualEncoder

OPSET = 18
LIMIT = 2_000_000_000
"""Bytes: protobuf, in which an .onnx file is written, ends at 2 GiB."""
CARD = """# Image-text encoder for onnxruntime

Images and texts become vectors of {dim} numbers in one space; their dot product is the cosine similarity. Batches of
any size; texts of at most {context} tokens. Needs `onnxruntime`, `tokenizers`, `Pillow` and `numpy`:

```python
{code}```

```python
encoder = OnnxEncoder("path/to/this/folder")
images = encoder.encode_images([read_image("cat.jpg")])
texts = encoder.encode_texts(["a photo of a cat", "a photo of a dog"])
print(images @ texts.T)
```

`read_image` gives what training saw: upright, transparency on white, 16-bit grey scaled. `encode_texts` resolves HTML
entities and takes the name of a special token in a text for text, as training did.

For probabilities over texts take the softmax of `similarity × {scale:.4g}` (`preprocess.json` has the trained one).

Trained with ITO (https://arxiv.org/abs/2603.02767). The fusion module of training is not part of this model.
"""


class _Images(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)


class _Texts(nn.Module):
    """The mask instead of lengths: it is what tokenizers give and what others' text encoders take."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.encode_text(input_ids, attention_mask.sum(1))


def write_onnx(model: DualEncoder, tokenizer_dir: Path, folder: Path) -> None:
    """Write both graphs, the tokenizer, preprocess.json and README.md into the empty `folder`.

    Raises:
        ExportError: a tower that torch cannot write as ONNX with a free batch, or of more than 2 GB.
    """
    image, text = model.image.cfg, model.text.cfg
    batch = Dim("batch")
    tokens = Dim("tokens", max=text.context)
    pixels_BCHW = torch.zeros(2, 3, image.size, image.size)
    ids_BT = torch.zeros(2, text.context - 1, dtype=torch.int64)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, text.context // 2 :] = 0  # padding in the example, or the graph might be one without
    _write_graph(
        _Images(model).eval(),
        {"pixels": pixels_BCHW},
        {"pixels": {0: batch}},
        folder / "image.onnx",
        f"model.image.name={image.name}",
    )
    shapes = {name: {0: batch, 1: tokens} for name in ("input_ids", "attention_mask")}
    inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
    _write_graph(_Texts(model).eval(), inputs, shapes, folder / "text.onnx", f"model.text.kind={text.kind}")
    shutil.copyfile(tokenizer_dir / "tokenizer.json", folder / "tokenizer.json")
    facts = _facts(model, tokenizer_dir)
    write_json(folder / "preprocess.json", facts)
    code = standalone(Path(__file__).with_name("onnx_encoder.py"))
    card = CARD.format(dim=facts["embed_dim"], context=text.context, code=code, scale=facts["logit_scale"])
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_graph(net: nn.Module, inputs: dict[str, Tensor], shapes: dict[str, Any], path: Path, what: str) -> None:
    import onnx

    size = sum(weight.numel() * weight.element_size() for weight in net.parameters())
    if size > LIMIT:
        raise ExportError(f"{what} has {size / 1e9:.1f} GB of weights, and an ONNX file holds 2: take a smaller one.")
    try:
        with torch.no_grad(), quiet(), _silent():
            torch.onnx.export(
                net,
                kwargs=inputs,
                f=path,
                input_names=list(inputs),
                output_names=["embeddings"],  # "embedding" is what the exporter calls a look-up inside
                dynamic_shapes=shapes,
                opset_version=OPSET,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise ExportError(
            f"{what} cannot be written as ONNX with a free batch size: {reason} Take another tower, or ship the "
            "SentenceTransformer folder."
        ) from error
    graph = onnx.load(str(path))
    _forget_source(graph)
    onnx.save(graph, str(path))


def _forget_source(model: Any) -> None:
    """Drop the exporter's notes on every node: stack traces with the paths of the machine that wrote it."""
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.functions):
        del part.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
    del model.metadata_props[:]


@contextlib.contextmanager
def _silent() -> Any:
    """The exporter prints, warns and logs what is of use to its authors."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _facts(model: DualEncoder, tokenizer_dir: Path) -> dict[str, Any]:
    image, text = model.image.cfg, model.text.cfg
    tokenizer = json.loads((tokenizer_dir / "tokenizer_config.json").read_text("utf-8"))
    token = tokenizer.get("pad_token") or tokenizer.get("eos_token")
    token = token["content"] if isinstance(token, dict) else token
    pad = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json")).token_to_id(token)
    return {
        "format": 1,
        "embed_dim": model.image.proj.out_features,
        "logit_scale": float(model.logit_scale.detach().exp()),
        "normalised": True,
        "image": {
            "file": "image.onnx",
            "input": "pixels",
            "layout": "float32 (batch, 3, size, size), RGB",
            "size": image.size,
            "read": "first frame, upright by EXIF, on white, high byte of 16 bits (read_image in README.md)",
            "resize": "short side to size, bicubic, antialiased (Pillow); other side rounded down",
            "crop": "the middle square",
            "scale": "0...255 to 0...1, then minus mean, over std",
            "mean": list(model.image.mean),
            "std": list(model.image.std),
        },
        "text": {
            "file": "text.onnx",
            "inputs": ["input_ids", "attention_mask"],
            "layout": "int64 (batch, tokens)",
            "clean": "HTML entities resolved (clean_text in README.md), the rest is in the tokenizer",
            "tokenizer": "tokenizer.json",
            "special_tokens": "their names in a text are text: encode_special_tokens",
            "context": text.context,
            "truncate": tokenizer.get("truncation_side", "right"),
            "padding": {"side": "right", "to": "the longest of the batch", "token": token, "id": pad},
            "pooling": f"{text.pool} (in the graph)",
        },
    }
