"""A folder that OpenCLIP loads by `local-dir:`: its own classes, no timm, our tokenizer and preprocessing.

Source of the layout: OpenCLIP 3.3, https://github.com/mlfoundations/open_clip, src/open_clip/factory.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file

from ito_ray.export.sentence_transformer import write_json
from ito_ray.export.standalone import reading_code
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.models.open_clip import open_clip_config, to_open_clip

NO_TOKENIZER = {"config.json", "model.safetensors", "sentence_bert_config.json"}
CARD = """# Image-text encoder for OpenCLIP

{reading}

```python
import open_clip
import torch

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:path/to/this/folder")
tokenizer = open_clip.get_tokenizer("local-dir:path/to/this/folder")
model.eval()
with torch.inference_mode():
    images = model.encode_image(preprocess(read_image("cat.jpg", size={size}))[None], normalize=True)
    texts = [clean_text(text) for text in ("a photo of a cat", "a photo of a dog")]
    texts = model.encode_text(tokenizer(texts), normalize=True)
print((model.logit_scale.exp() * images @ texts.T).softmax(-1))
```

`read_image` gives what training saw: upright, transparency on white, 16-bit grey scaled, the middle square;
`.convert("RGB")` alone gives other images, and OpenCLIP does even that only after it has resized. The tokenizer does
what `clean_text` does, and the name of a special token in a text is text. OpenCLIP moreover repairs broken encodings
before it tokenizes, which training did not: where that changes a text, its vector is another one.

Trained with ITO (https://arxiv.org/abs/2603.02767). The fusion module of training is not part of this model.
"""


def write_open_clip(model: DualEncoder, tokenizer_dir: Path, folder: Path) -> None:
    """Write config, weights (float32), tokenizer and README.md into the empty `folder`.

    Raises:
        ExportError: OpenCLIP has no such pair of towers; the reason is named.
    """
    described, image = open_clip_config(model), model.image
    described["text_cfg"]["hf_tokenizer_name"] = "."  # any name: of a local-dir OpenCLIP takes the folder itself
    preprocess = {
        "size": image.cfg.size,
        "mode": "RGB",
        "mean": list(image.mean),
        "std": list(image.std),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    write_json(folder / "open_clip_config.json", {"model_cfg": described, "preprocess_cfg": preprocess})
    state = to_open_clip(model.state_dict())
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "open_clip_model.safetensors")
    for path in tokenizer_dir.iterdir():
        if path.name not in NO_TOKENIZER:
            shutil.copyfile(path, folder / path.name)
    card = CARD.format(reading=reading_code(), size=image.cfg.size)
    (folder / "README.md").write_text(card, encoding="utf-8")
