"""An exported SentenceTransformer folder back to the dual encoder it was made of: other formats start here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from ito_ray.config.schema import ImageTowerConfig, ModelConfig, TextTowerConfig
from ito_ray.errors import ExportError
from ito_ray.export.checks import check_manifest
from ito_ray.export.sentence_transformer import quiet
from ito_ray.models.dual_encoder import DualEncoder

TEXT, IMAGE = "text_0_Transformer", "image_0_Transformer"
TEXT_PROJECTION, IMAGE_PROJECTION = "text_2_Dense", "image_1_Dense"
WEIGHTS = "model.safetensors"


def load_encoder(folder: Path) -> DualEncoder:
    """The towers of `folder`, float32, in evaluation mode; its tokenizer lies in `folder/text_0_Transformer`.

    Raises:
        ExportError: the folder is not one that training exported, has changed since, or its weights are not those of
            its description.
    """
    check_manifest(folder)
    try:
        facts, text, image = (
            _read(folder / name) for name in ("ito.json", f"{TEXT}/config.json", f"{IMAGE}/config.json")
        )
        cfg = _model_config(folder, facts, text, image)
        state = {
            **_weights(folder / IMAGE, "timm_model.", "image.net."),
            **_weights(folder / IMAGE_PROJECTION, "linear.", "image.proj."),
            **_weights(folder / TEXT_PROJECTION, "linear.", "text.proj."),
        }
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder / TEXT, local_files_only=True, trust_remote_code=False)
            model = DualEncoder(cfg, tokenizer)
        if cfg.text.kind != "pretrained":  # which loads itself
            state |= _weights(folder / TEXT, "", "text.net.")
        unknown = _fill(model, state)
        model.logit_scale.data.fill_(facts["log_logit_scale"])
    except (OSError, KeyError, ValidationError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise ExportError(
            f"{folder} is not a SentenceTransformer folder that ito_ray exported ({reason}): give the "
            "…/sentence_transformer of a run."
        ) from error
    if unknown:
        raise ExportError(
            f"The weights in {folder} are not those of {cfg.image.name} and a {cfg.text.kind} text tower: "
            f"{len(unknown)} are missing, unknown or of another shape, first {unknown[0]}. Export the run again."
        )
    return model.eval()


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ExportError(f"{path} is not JSON ({error}): export the run again.") from error
    return content


def _model_config(folder: Path, facts: dict[str, Any], text: dict[str, Any], image: dict[str, Any]) -> ModelConfig:
    kind: dict[str, Any] = facts["text"]
    if kind["kind"] == "pretrained":
        kind = {**kind, "source": str(folder / TEXT)}
    else:
        sizes = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
        kind = {**kind, **{ours: text[theirs] for ours, theirs in sizes.items()}}
    return ModelConfig(
        image=ImageTowerConfig(**facts["image"], kwargs=image["model_args"]),
        text=TextTowerConfig(**kind),
        embed_dim=facts["embed_dim"],
    )


def _weights(folder: Path, theirs: str, ours: str) -> dict[str, Tensor]:
    return {ours + name.removeprefix(theirs): tensor for name, tensor in load_file(folder / WEIGHTS).items()}


def _fill(model: DualEncoder, state: dict[str, Tensor]) -> list[str]:
    """Load `state`; return the names that do not fit, and load nothing if there are any."""
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    pretrained = model.text.cfg.kind == "pretrained"
    wanted = {n for n in own if n != "logit_scale" and not (pretrained and n.startswith("text.net."))}
    wrong = sorted((wanted ^ set(state)) | {name for name in wanted & set(state) if own[name] != state[name].shape})
    if not wrong:
        model.load_state_dict(state, strict=False)
    return wrong
