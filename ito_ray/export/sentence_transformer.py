"""The trained dual encoder as a folder that `SentenceTransformer(folder)` loads: stock classes, no code of ours.

folder/
  modules.json, router_config.json          one Router: text -> text_*, image -> image_*
  text_0_Transformer  1_Pooling  2_Dense  3_Normalize
  image_0_Transformer (timm inside transformers' TimmWrapper, with its preprocessing)  1_Dense  2_Normalize
  ito.json                                  logit scale and sizes, for whoever needs the temperature
  README.md                                 model card
  manifest.json                             sha256 of every other file
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoTokenizer, TimmWrapperConfig, TimmWrapperModel
from transformers.utils import logging as transformers_logging

from ito_ray.errors import ExportError
from ito_ray.export.checks import write_manifest
from ito_ray.export.standalone import reading_code
from ito_ray.redact import redact_all

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.module import Module

    from ito_ray.models.dual_encoder import DualEncoder
    from ito_ray.models.image_tower import ImageTower
    from ito_ray.models.text_tower import TextTower

KIND = "sentence_transformer"
POOLING = {"mean": "mean", "cls": "cls", "last": "lasttoken"}
IMAGE_MODALITY = {"image": {"method": "forward", "method_output_name": "pooler_output"}}
LOADING_TRACES = ("_name_or_path", "is_local", "local_files_only")

CARD = """---
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags: [sentence-transformers, image-text, clip, timm]
---
# Image-text encoder

Images and texts become vectors of {dim} numbers in one space; their dot product is the cosine similarity.
Image tower: timm `{image}`, {size}×{size} pixels. Text tower: `{text}`, at most {context} tokens.

{reading}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder", local_files_only=True)
images = model.encode([read_image("cat.jpg", size={size})])
texts = model.encode([{{"text": clean_text(text)}} for text in ("a photo of a cat", "a photo of a dog")])
print(images @ texts.T)
```

Encode images and texts in separate calls, and wrap texts as above: a bare string that looks like the address of an
image would be taken for one. `read_image` gives what training saw: upright, transparency on white, 16-bit grey scaled,
the middle square; `.convert("RGB")` alone gives other images. The tokenizer does what `clean_text` does, but for HTML
entities; the name of a special token in a text is text. For probabilities over texts take the softmax of
`similarity × {scale:.4g}` (`ito.json` has the trained logit scale).

Trained with ITO (https://arxiv.org/abs/2603.02767). The fusion module of training is not part of this model.
"""


def export_sentence_transformer(model: DualEncoder, tokenizer_dir: Path, folder: Path) -> Path:
    """Write `model` as a SentenceTransformer folder; an existing folder is replaced only when all is written.

    Args:
        model: the trained dual encoder, on any device; it is not changed. Weights ship as float32.
        tokenizer_dir: folder of the fast Hugging Face tokenizer it was trained with.
        folder: where to write.

    Returns:
        `folder`.

    Raises:
        ExportError: the image tower cannot be rebuilt from its timm name and arguments, or the tokenizer is not a
            fast one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch, quiet():
        built = Path(scratch, "built")
        stock = _assemble(model, tokenizer_dir, Path(scratch))
        stock.save_pretrained(str(built), create_model_card=False, safe_serialization=True)
        _finish_text_config(model.text.net, built / "text_0_Transformer")
        _describe(model, built)
        make_public(built)
        write_manifest(built, KIND)
        if folder.exists():
            folder.rename(Path(scratch, "replaced"))
        built.rename(folder)
    return folder


def _assemble(model: DualEncoder, tokenizer_dir: Path, scratch: Path) -> SentenceTransformer:
    # Imported here: it takes seconds, and whoever only trains should not wait for it.
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Router, Transformer

    text_dir = _write_text(model.text, tokenizer_dir, scratch / "text")
    text = Transformer(
        str(text_dir),
        model_kwargs={"local_files_only": True, **_text_arguments(model.text.net)},
        config_kwargs={"local_files_only": True},
        processor_kwargs={"local_files_only": True, "model_max_length": model.text.cfg.context},
    )
    width = model.text.proj.in_features
    image = Transformer(
        str(_write_image(model.image, scratch / "image")),
        model_kwargs={"local_files_only": True},
        config_kwargs={"local_files_only": True},
        processor_kwargs={"local_files_only": True},
        modality_config=IMAGE_MODALITY,
        module_output_name="sentence_embedding",
    )
    routes: dict[str, list[Module]] = {
        "text": [text, Pooling(width, POOLING[model.text.cfg.pool]), _dense(model.text.proj), Normalize()],
        "image": [image, _dense(model.image.proj), Normalize()],
    }
    router = Router(
        routes,
        default_route=None,
        allow_empty_key=False,  # an input that is neither is an error, not silently a text
        route_mappings={(None, "text"): "text", (None, "image"): "image"},
    )
    return SentenceTransformer(modules=[router], device="cpu", similarity_fn_name="cosine")


def _write_text(text: TextTower, tokenizer_dir: Path, folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(
        str(tokenizer_dir), local_files_only=True, trust_remote_code=False, split_special_tokens=True
    )
    if not tokenizer.is_fast:
        raise ExportError(
            f"The tokenizer in {tokenizer_dir} is a {type(tokenizer).__name__}, which is not a fast tokenizer: save "
            "it with a tokenizer.json."
        )
    net: Any = copy.deepcopy(text.net).float().cpu()
    net.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


def _write_image(image: ImageTower, folder: Path) -> Path:
    cfg = image.cfg
    arguments = dict(image.create_kwargs)
    try:
        json.dumps(arguments)
    except TypeError as error:
        raise ExportError(
            f"model.image.kwargs={arguments} cannot be written as JSON ({error}): use numbers, strings and lists."
        ) from error
    config = TimmWrapperConfig(
        architecture=cfg.name,
        model_args=arguments,
        do_pooling=True,
        num_labels=0,
        num_features=image.net.num_features,
        pretrained_cfg={
            "input_size": [3, cfg.size, cfg.size],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(image.mean),
            "std": list(image.std),
            "num_classes": 0,
        },
    )
    wrapper = TimmWrapperModel(config)
    try:
        wrapper.timm_model.load_state_dict(image.net.state_dict(), strict=True)
    except RuntimeError as error:
        raise ExportError(
            f"timm builds another network from model.image.name={cfg.name} and {arguments} than was trained "
            f"({str(error).splitlines()[-1].strip()}): every change to it must be in model.image.kwargs."
        ) from error
    wrapper.float().save_pretrained(folder, safe_serialization=True)
    return folder


def _dense(proj: nn.Linear) -> Module:
    from sentence_transformers.sentence_transformer.modules import Dense

    return Dense(
        proj.in_features,
        proj.out_features,
        bias=False,
        activation_function=nn.Identity(),
        init_weight=proj.weight.detach().float().cpu().clone(),
    )


def _text_arguments(net: nn.Module) -> dict[str, bool]:
    """A BERT without its pooler must be rebuilt without: else it gets a random one, and a warning at each load."""
    parameters = inspect.signature(type(net).__init__).parameters
    if "add_pooling_layer" in parameters and getattr(net, "pooler", None) is None:
        return {"add_pooling_layer": False}
    return {}


def _finish_text_config(net: nn.Module, folder: Path) -> None:
    """Sentence-transformers reads `model_kwargs` from this file, but does not write them."""
    arguments = _text_arguments(net)
    if arguments:
        path = folder / "sentence_bert_config.json"
        write_json(path, {**json.loads(path.read_text("utf-8")), "model_kwargs": arguments})


def _describe(model: DualEncoder, folder: Path) -> None:
    image, text = model.image.cfg, model.text.cfg
    log_scale = float(model.logit_scale.detach())
    scale = float(torch.tensor(log_scale).exp())
    dim = model.image.proj.out_features
    write_json(
        folder / "ito.json",
        {
            "format": 1,
            "embed_dim": dim,
            "log_logit_scale": log_scale,
            "logit_scale": scale,
            "image": image.model_dump(mode="json", include={"name", "size", "mean", "std"}),
            "text": {"kind": text.kind, "context": text.context, "pool": text.pool},
        },
    )
    card = CARD.format(
        reading=reading_code(),
        dim=dim,
        image=image.name,
        size=image.size,
        text=type(model.text.net).__name__,
        context=text.context,
        scale=scale,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def make_public(folder: Path) -> None:
    """Drop traces of how it was loaded here from the configs; make files readable by all (weights come as 0600)."""
    for path in folder.rglob("*config.json"):
        content = json.loads(path.read_text("utf-8"))
        kept = {key: value for key, value in content.items() if key not in LOADING_TRACES}
        if kept != content:
            write_json(path, kept)
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented UTF-8 JSON with a newline at its end, without secrets."""
    path.write_text(json.dumps(redact_all(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, load reports or advice from the libraries while a model is written."""
    loggers = [logging.getLogger(name) for name in ("sentence_transformers", "timm")]
    levels = [logger.level for logger in loggers]
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
