"""Run as a file by parity.py in a process of its own: encode the reference inputs with the exported folder.

    echo '["FOLDER", "REFERENCE", "OUT"]' | python -I parity_child.py

The paths come by stdin, so that the parent can export while this process imports its libraries (about 10 s).
It stands for a stranger's machine: ito_ray cannot be imported, nothing is unpickled, no connection is opened.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: https://docs.python.org/3/library/audit_events.html"""
    if event == "import" and str(arguments[0]).split(".")[0] == "ito_ray":
        raise ImportError("the exported folder asked for ito_ray")
    if event in ("pickle.find_class", "socket.connect"):
        raise RuntimeError(f"loading the exported folder caused {event} {arguments[1:]}")


def main() -> None:
    """Read the three paths, write the embeddings `text` (n,D) and `image` (m,D), float32, to the safetensors OUT."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    from PIL import Image
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file
    from sentence_transformers import SentenceTransformer

    request = sys.stdin.readline()
    if not request:  # the parent gave up
        return
    folder, reference, out = json.loads(request)
    sys.addaudithook(_refuse)
    with safe_open(reference, framework="numpy") as file:
        texts: list[str] = json.loads(file.metadata()["texts"])
    arrays = load_file(reference)
    images = [Image.fromarray(arrays[key]) for key in sorted(arrays) if key.startswith("input.")]
    model = SentenceTransformer(folder, device="cpu", local_files_only=True, trust_remote_code=False)
    save_file(
        {
            "text": model.encode([{"text": text} for text in texts], show_progress_bar=False),
            "image": model.encode(images, show_progress_bar=False),
        },
        out,
    )


if __name__ == "__main__":
    main()
