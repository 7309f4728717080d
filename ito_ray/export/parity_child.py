"""Run as a file by parity.py in a process of its own: encode the reference inputs with the exported folder.

    echo '["FOLDER", "REFERENCE", "OUT"]' | python -I parity_child.py sentence_transformer|open_clip|hf_clip|onnx

The paths come by stdin, so that the parent can export while this process imports its libraries (about 10 s).
It stands for a stranger's machine: ito_ray cannot be imported, nothing is unpickled, no connection is opened. For onnx
it has no torch either, and encodes with the code in the folder's README.md.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Encode = Callable[[Sequence[Any]], Any]
"""Images or texts -> (n,D) float32."""
NO_TORCH = ("torch", "torchvision", "timm", "transformers", "sentence_transformers", "open_clip")


def _forbid(*packages: str) -> None:
    """An audit hook: https://docs.python.org/3/library/audit_events.html"""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "import" and str(arguments[0]).split(".")[0] in packages:
            raise ImportError(f"the exported folder asked for {arguments[0]}")
        if event in ("pickle.find_class", "socket.connect"):
            raise RuntimeError(f"loading the exported folder caused {event} {arguments[1:]}")

    sys.addaudithook(refuse)


def _sentence_transformer() -> Callable[[str], tuple[Encode, Encode]]:
    from sentence_transformers import SentenceTransformer

    _forbid("ito_ray")

    def load(folder: str) -> tuple[Encode, Encode]:
        model = SentenceTransformer(folder, device="cpu", local_files_only=True, trust_remote_code=False)
        return (
            lambda images: model.encode(list(images), show_progress_bar=False),
            lambda texts: model.encode([{"text": text} for text in texts], show_progress_bar=False),
        )

    return load


def _open_clip() -> Callable[[str], tuple[Encode, Encode]]:
    import open_clip
    import torch
    import transformers  # noqa: F401  imported when the tokenizer is asked for, and while it may still

    _forbid("ito_ray")

    def load(folder: str) -> tuple[Encode, Encode]:
        name = f"local-dir:{folder}"
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        tokenizer = open_clip.get_tokenizer(name)
        model.eval()

        @torch.inference_mode()
        def encode_images(images: Sequence[Any]) -> Any:
            return model.encode_image(torch.stack([preprocess(image) for image in images]), normalize=True).numpy()

        @torch.inference_mode()
        def encode_texts(texts: Sequence[str]) -> Any:
            return model.encode_text(tokenizer(list(texts)), normalize=True).numpy()

        return encode_images, encode_texts

    return load


def _hf_clip() -> Callable[[str], tuple[Encode, Encode]]:
    import torch
    from transformers import AutoProcessor, CLIPModel

    _forbid("ito_ray", "timm", "sentence_transformers", "open_clip")

    def load(folder: str) -> tuple[Encode, Encode]:
        model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        any_image = processor(images=[_blank()], return_tensors="pt")
        any_text = processor(text=["a"], return_tensors="pt")

        @torch.inference_mode()
        def encode_images(images: Sequence[Any]) -> Any:
            inputs = processor(images=list(images), return_tensors="pt")
            return model(**inputs, **any_text).image_embeds.numpy()

        @torch.inference_mode()
        def encode_texts(texts: Sequence[str]) -> Any:
            inputs = processor(text=list(texts), padding=True, truncation=True, return_tensors="pt")
            return model(**inputs, **any_image).text_embeds.numpy()

        return encode_images, encode_texts

    return load


def _blank() -> Any:
    from PIL import Image

    return Image.new("RGB", (8, 8))


def _onnx() -> Callable[[str], tuple[Encode, Encode]]:
    _forbid("ito_ray", *NO_TORCH)
    import onnxruntime  # noqa: F401  the README's code imports it; here so that it happens while the parent works

    def load(folder: str) -> tuple[Encode, Encode]:
        readme = Path(folder, "README.md").read_text("utf-8")
        code = readme.split("```python\n")[1].split("```\n")[0]
        names: dict[str, Any] = {"__name__": "readme"}
        exec(compile(code, "README.md", "exec"), names)
        encoder = names["OnnxEncoder"](folder)
        return encoder.encode_images, encoder.encode_texts

    return load


LOADERS = {"sentence_transformer": _sentence_transformer, "open_clip": _open_clip, "hf_clip": _hf_clip, "onnx": _onnx}


def _in_batches(encode: Encode, inputs: Sequence[Any], batch: int) -> Any:
    import numpy as np

    parts = [encode(inputs[start : start + batch]) for start in range(0, len(inputs), batch)]
    return np.ascontiguousarray(np.concatenate(parts))


def main() -> None:
    """Read the three paths, write the embeddings (n,D), float32, to the safetensors OUT.

    `text` and `image` are encoded all at once. Where we make the batches ourselves, `text.1` and `image.1` are encoded
    one at a time, `text.2` and `image.2` by twos.
    """
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    kind = sys.argv[1]
    load = LOADERS[kind]()
    from PIL import Image
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    request = sys.stdin.readline()
    if not request:  # the parent gave up
        return
    folder, reference, out = json.loads(request)
    with safe_open(reference, framework="numpy") as file:
        texts: list[str] = json.loads(file.metadata()["texts"])
    arrays = load_file(reference)
    images = [Image.fromarray(arrays[key]) for key in sorted(arrays) if key.startswith("input.")]
    encode_images, encode_texts = load(folder)
    encoded = {}
    for name, encode, inputs in (("text", encode_texts, texts), ("image", encode_images, images)):
        encoded[name] = _in_batches(encode, inputs, len(inputs))
        for batch in () if kind == "sentence_transformer" else (1, 2):
            encoded[f"{name}.{batch}"] = _in_batches(encode, inputs, batch)
    save_file(encoded, out)


if __name__ == "__main__":
    main()
