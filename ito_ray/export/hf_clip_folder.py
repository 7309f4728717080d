"""A folder that transformers loads as `CLIPModel` with `CLIPProcessor`: its own classes, no timm, our tokenizer.

folder/
  config.json, model.safetensors            CLIPModel: both towers, both projections, the logit scale
  processor_config.json                     CLIPImageProcessor's part of CLIPProcessor
  tokenizer.json, tokenizer_config.json     as in training

Source of the names: transformers 5, https://github.com/huggingface/transformers, models/clip/modeling_clip.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ito_ray.errors import ExportError
from ito_ray.export.parity import PROBE_SIZES, probe_images
from ito_ray.export.sentence_transformer import quiet
from ito_ray.export.standalone import reading_code
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.models.open_clip import clip_image_obstacles, clip_text_obstacles

NO_TOKENIZER = {"config.json", "model.safetensors", "sentence_bert_config.json"}
LEGACY_END = 2
"""With this id of the end token, CLIPTextModel looks for the highest id instead (transformers, PR 24773)."""
CARD = """# Image-text encoder for transformers

{reading}

```python
import torch
from transformers import AutoProcessor, CLIPModel

folder = "path/to/this/folder"
model = CLIPModel.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder, backend="pil")
images = [read_image("cat.jpg", size={size})]
texts = [clean_text(text) for text in ("a photo of a cat", "a photo of a dog")]
inputs = processor(text=texts, images=images, padding=True, truncation=True, return_tensors="pt")
with torch.inference_mode():
    answer = model(**inputs)  # answer.image_embeds and answer.text_embeds are of unit length
print(answer.logits_per_image.softmax(-1))
```

`read_image` gives what training saw: upright, transparency on white, 16-bit grey scaled, the middle square, which the
processor leaves as it is. `.convert("RGB")` alone gives other images; of one that is larger, the processor cuts the
middle square one pixel off that of training where the number of pixels cut away has a remainder of 3 when divided by 4,
and without `backend="pil"` torchvision resizes, whose pixels differ a little. The tokenizer does what `clean_text`
does, but for HTML entities; the name of a special token in a text is text.
"""


def write_hf_clip(model: DualEncoder, tokenizer_dir: Path, folder: Path) -> None:
    """Write config, weights (float32), processor, tokenizer and README.md into the empty `folder`.

    Raises:
        ExportError: transformers' CLIP has no such pair of towers; the reason is named.
    """
    from transformers import CLIPImageProcessorPil, CLIPModel

    config = _config(model)
    with quiet():
        theirs = CLIPModel(config).eval()
        theirs.load_state_dict(_weights(model.state_dict()), strict=True)
        theirs.save_pretrained(folder, safe_serialization=True)
        image = model.image.cfg
        CLIPImageProcessorPil(
            size={"shortest_edge": image.size},
            crop_size={"height": image.size, "width": image.size},
            image_mean=list(model.image.mean),
            image_std=list(model.image.std),
        ).save_pretrained(folder)
    for path in tokenizer_dir.iterdir():
        if path.name not in NO_TOKENIZER:
            shutil.copyfile(path, folder / path.name)
    card = CARD.format(reading=reading_code(), size=image.size)
    (folder / "README.md").write_text(card, encoding="utf-8")


def comparable_images(size: int) -> list[Image.Image]:
    """The probes, lengthened by some pixels until CLIPImageProcessor cuts the same square of them as training."""
    sizes = []
    for width, height in PROBE_SIZES:
        while not _same_square(width, height, size):
            width, height = (width + 1, height) if width > height else (width, height + 1)
        sizes.append((width, height))
    return probe_images(sizes=sizes)


def _same_square(width: int, height: int, size: int) -> bool:
    """Whether half of what is cut away, rounded to even (torchvision, as in training) or down (theirs), is the same."""
    cut = int(size * max(width, height) / min(width, height)) - size
    return round(cut / 2) == cut // 2


def _config(model: DualEncoder) -> Any:
    from transformers import CLIPConfig

    end = model.text.cfg.kind == "clip" and model.text.net.config.eos_token_id == LEGACY_END
    obstacles = chain(
        clip_image_obstacles(model),
        clip_text_obstacles(model),
        [(f"its tokenizer's end token is {LEGACY_END}, for which CLIPTextModel has a rule of its own", end)],
    )
    for reason, wrong in obstacles:  # each assumes those before it
        if wrong:
            raise ExportError(
                f"This dual encoder has no counterpart in transformers' CLIPModel: {reason}. Take a vit_…_clip_… "
                "without quickgelu and model.text.kind=clip with pool=last, or export in another format."
            )
    net, text = model.image.net, model.text.net.config
    vision = {
        "hidden_size": net.embed_dim,
        "intermediate_size": net.blocks[0].mlp.fc1.out_features,
        "num_hidden_layers": len(net.blocks),
        "num_attention_heads": net.blocks[0].attn.num_heads,
        "image_size": model.image.cfg.size,
        "patch_size": net.patch_embed.patch_size[0],
        "hidden_act": "gelu",
        "layer_norm_eps": net.norm.eps,
    }
    dim, scale = model.image.proj.out_features, float(model.logit_scale.detach())
    return CLIPConfig(
        text_config={**text.to_dict(), "projection_dim": dim},
        vision_config={**vision, "projection_dim": dim},
        projection_dim=dim,
        logit_scale_init_value=scale,
    )


def _weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a `DualEncoder` → state dict of a `CLIPModel`, contiguous float32."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for theirs, part in _renamed(name, tensor.detach().float()):
            found[theirs] = part.clone(memory_format=torch.contiguous_format)
    return found


TOPS = {
    "image.proj.weight": "visual_projection.weight",
    "text.proj.weight": "text_projection.weight",
    "image.net.pos_embed": "vision_model.embeddings.position_embedding.weight",
    "image.net.cls_token": "vision_model.embeddings.class_embedding",
    "image.net.patch_embed.proj.weight": "vision_model.embeddings.patch_embedding.weight",
}
PARTS = {
    "image.net.norm_pre.": "vision_model.pre_layrnorm.",
    "image.net.norm.": "vision_model.post_layernorm.",
    "image.net.blocks.": "vision_model.encoder.layers.",
    "text.net.": "text_model.",
}
IN_BLOCK = {"attn.proj": "self_attn.out_proj", "norm1": "layer_norm1", "norm2": "layer_norm2"}


def _renamed(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    if name in TOPS:
        if name.endswith("cls_token"):
            tensor = tensor[0, 0]
        return [(TOPS[name], tensor[0] if name.endswith("pos_embed") else tensor)]
    theirs = name
    for part, other in PARTS.items():
        if name.startswith(part):
            theirs = other + name.removeprefix(part)
            break
    if not theirs.startswith("vision_model.encoder"):
        return [(theirs, tensor)]
    for part, other in IN_BLOCK.items():
        theirs = theirs.replace(f".{part}.", f".{other}.")
    if ".attn.qkv." not in theirs:
        return [(theirs, tensor)]
    names = (theirs.replace(".attn.qkv.", f".self_attn.{part}_proj.") for part in "qkv")
    return list(zip(names, tensor.chunk(3), strict=True))
